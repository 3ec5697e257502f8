"""Training data: photographs, degradations, maps, samples and distillation targets."""
