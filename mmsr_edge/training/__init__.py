"""Training [torch]."""
