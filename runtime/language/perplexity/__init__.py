"""The main job: the loss and the perplexity of a causal language model on texts."""
