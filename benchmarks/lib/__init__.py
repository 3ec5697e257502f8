"""What the benchmark scripts beside this folder share."""
