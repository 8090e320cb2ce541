"""Planning: what all stages agree on, and compile, before a run."""
