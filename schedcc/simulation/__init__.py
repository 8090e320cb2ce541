"""Simulation: what a plan, or a schedule, takes under a model of costs."""
