"""JAX functions inside torch, and torch functions inside JAX."""
