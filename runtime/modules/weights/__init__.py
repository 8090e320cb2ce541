"""Weights: shared by layers of several ranks, and compared between processes."""
