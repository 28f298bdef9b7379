"""Floor 4, transforms: gradients."""
