"""Multiple choice after a few examples: which positions are computed, and what that takes."""
