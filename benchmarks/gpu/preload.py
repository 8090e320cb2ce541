"""What processes of ranks need, imported once in the process that forks them."""

import benchmarks.gpu.rows
import runtime

__all__ = ["benchmarks", "runtime"]
