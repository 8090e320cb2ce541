"""The runtime beside its peers and hand-written loops, see docs/explanation/benchmarks.md."""
