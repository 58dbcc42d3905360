"""Versions of layers and releases of the game: how they are built beside the old ones, made current, and removed."""
