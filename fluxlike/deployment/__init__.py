"""Inference: folding of BatchNorm, and models compiled with their weights as constants."""
