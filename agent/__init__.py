"""Kindling: a rootless worker node for functions that are container images.

The rooms and the direction in which they may import each other are listed in ARCHITECTURE.md.
"""
