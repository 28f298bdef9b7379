"""Torch modules as trees, and trees as torch modules."""
