"""Causal language models of transformers, split into the layers of a pipeline."""
