"""Trees over many devices: tensors of which each rank holds a part, and what they compute."""
