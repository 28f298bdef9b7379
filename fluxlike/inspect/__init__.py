"""Floor 7, inspect: models seen whole, by their shapes."""
