"""Checkpoints of a run: written whole or not at all, the best and the newest kept, read back to the bit."""
