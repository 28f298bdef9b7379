"""Floor 2, scope: what surrounds one call of a transform."""
