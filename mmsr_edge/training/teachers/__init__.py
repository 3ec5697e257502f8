"""Teachers: published networks, and what they say of photographs."""
