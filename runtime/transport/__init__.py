"""Transports: how tensors get from stage to stage."""

from runtime.transport.in_memory import (
    DeadlockError,
    InMemoryNetwork,
    InMemoryTransport,
    run_stages,
)
from runtime.transport.protocol import Pending, Transport, TransportError
from runtime.transport.torch_distributed import TorchTransport

__all__ = [
    "DeadlockError",
    "InMemoryNetwork",
    "InMemoryTransport",
    "Pending",
    "TorchTransport",
    "Transport",
    "TransportError",
    "run_stages",
]
