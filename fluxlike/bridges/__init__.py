"""Bridges to what is written for other systems."""
