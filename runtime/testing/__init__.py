"""For tests: stages as threads of one process, stricter than any real transport."""
