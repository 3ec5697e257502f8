"""Modalities: text, depth, segmentation and edges of a picture. Device code, without torch."""
