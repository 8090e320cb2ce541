"""Execution: the interpreter of plans, its buffers and its transfers."""
