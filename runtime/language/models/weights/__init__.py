"""Weights on disk: whose they are, whether they fit, and how layers get them."""
