"""Runtimes: one file per inference library. They know tensors, and nothing of pictures."""
