"""Tokenizers: loaded, and checked against what their files declare."""
