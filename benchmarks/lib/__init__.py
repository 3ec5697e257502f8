"""Modules shared by the benchmark scripts in the parent folder."""
