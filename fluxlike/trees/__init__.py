"""Floor 1, trees: registration, flattening, mapping, surgery, arithmetic, printing."""
