"""Losses: of pictures and of depth."""
