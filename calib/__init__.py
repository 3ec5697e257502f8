"""Calibration sets: inputs of components, recorded in the pipeline over all sampler steps."""
