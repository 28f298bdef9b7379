"""Models and checkpoints of Flux, Flax and Keras in our layout, and back."""
