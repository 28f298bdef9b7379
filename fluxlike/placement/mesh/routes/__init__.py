"""Routes: how functions go that DTensor has no rule for, or a wrong one. A file a kind; `table` has all."""
