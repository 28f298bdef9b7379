"""Layers, as plain classes registered with `functor`."""
