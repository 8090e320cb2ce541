"""Benchmarks: the runtime beside its peers and hand-written loops, see docs/benchmarks.md."""
