"""Contenders: the runtime, loops written by hand, and torch on the same stages."""
