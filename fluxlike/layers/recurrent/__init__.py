"""Recurrent layers: cells, whole sequences by torch's kernels, and any cell over time."""
