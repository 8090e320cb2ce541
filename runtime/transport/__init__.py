"""Transports: how tensors get from rank to rank."""

from runtime.transport.protocol import Pending, Transport, TransportError
from runtime.transport.single_process import SingleProcessTransport
from runtime.transport.torch_distributed.channel_groups import Channels
from runtime.transport.torch_distributed.groups.nccl_settings import NcclSettings
from runtime.transport.torch_distributed.transport import TorchTransport

__all__ = [
    "Channels",
    "NcclSettings",
    "Pending",
    "SingleProcessTransport",
    "TorchTransport",
    "Transport",
    "TransportError",
]
