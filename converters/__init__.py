"""Converters [torch]: from a trained checkpoint to a bundle that devices run."""
