"""Analysis: what waits for what, and when everything happens."""
