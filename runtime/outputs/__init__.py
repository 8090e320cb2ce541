"""Outputs: losses, metrics and logits, and what they are reduced to."""
