"""Arrays of numpy, JAX and CuPy as tensors, and back."""
