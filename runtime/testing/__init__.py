"""Ranks as threads of one process, for tests and studies; nothing that ships imports this."""

from runtime.testing.in_memory import InMemoryNetwork, InMemoryTransport, run_threads
from runtime.testing.network import DeadlockError, Link

__all__ = ["DeadlockError", "InMemoryNetwork", "InMemoryTransport", "Link", "run_threads"]
