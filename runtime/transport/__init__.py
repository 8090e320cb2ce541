"""Transports: how tensors get from stage to stage."""

from runtime.testing.in_memory import InMemoryNetwork, InMemoryTransport, run_stages
from runtime.testing.network import DeadlockError, Link
from runtime.transport.channel_groups import Channels
from runtime.transport.protocol import Pending, Transport, TransportError
from runtime.transport.torch_distributed import TorchTransport

__all__ = [
    "Channels",
    "DeadlockError",
    "InMemoryNetwork",
    "InMemoryTransport",
    "Link",
    "Pending",
    "TorchTransport",
    "Transport",
    "TransportError",
    "run_stages",
]
