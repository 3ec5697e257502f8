"""Teachers: published networks, and the labels that they give photographs."""
