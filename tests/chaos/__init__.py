"""Faults at chosen or random places in real processes, and what must come of them."""
