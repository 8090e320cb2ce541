"""Plans as columns of numbers: how large ones are made, checked and timed."""
