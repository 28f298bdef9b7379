"""Purity: what a function does beside returning a value."""
