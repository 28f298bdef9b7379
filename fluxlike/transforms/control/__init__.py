"""Loops and branches that a trace keeps as what they are."""
