"""Calibration sets: real pipeline activations, recorded over all sampler steps."""
