"""Recording: what a stage executes, written down while it executes it."""
