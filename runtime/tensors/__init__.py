"""Tensors of callers and of activations: nested, described, copied, and who owns their memory."""
