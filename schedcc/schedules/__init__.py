"""Schedules: which stage forwards which micro-batch at which step, and what comes after."""
