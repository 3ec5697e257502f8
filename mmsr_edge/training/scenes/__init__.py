"""Rendered scenes with exact depth: rooms, streets, terrain and piles of things, in numpy.

z is up, and lengths are in metres. A scene has convex shapes with textures, a light, a camera and
sometimes a height field; `make` renders many scenes into files.
"""
