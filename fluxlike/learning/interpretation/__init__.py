"""Interpretation: what a model gets wrong, in numbers and in pictures."""
