"""Formats of checkpoints: each looks the same to those who load, convert or inspect it."""
