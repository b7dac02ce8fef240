"""Checks of the tree itself: layers, generated files, papers."""
