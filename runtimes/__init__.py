"""Runtimes: one file per inference library. They handle tensors, independent of pictures."""
