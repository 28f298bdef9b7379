"""Whole functions of trees, compiled: what a call is (`call`), a trace of it, and `jit` itself."""
