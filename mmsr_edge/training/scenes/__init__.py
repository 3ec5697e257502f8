"""Rendered scenes with exact depth: rooms, streets, terrain and piles of things, in numpy.

z is up and lengths are metres. A scene is convex shapes with textures, a height field or not, a
light, and a camera; `make` renders many of them into files.
"""
