"""What the commands print with `--json`: reports of plans, recordings and evaluations."""
