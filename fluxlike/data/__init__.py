"""Data: batches from arrays in memory, splits, one-hot labels."""
