"""Attention: the layer, its masks, caches and positions, and blocks of transformers."""
