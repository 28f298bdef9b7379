"""Optimisers of torch, with their state, and ours."""
