"""Modalities: what is known of a picture besides its pixels; device side, no torch."""
