"""GGUF files: checked, converted once and kept."""
