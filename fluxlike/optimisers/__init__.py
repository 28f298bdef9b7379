"""Optimisers: the interface, the rules, and the links that go around them."""
