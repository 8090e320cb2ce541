"""Reports: what was measured, what it is held to, and how it is shown."""
