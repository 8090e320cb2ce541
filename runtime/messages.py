"""Messages of unknown size between neighbours, for what is agreed on before a run."""

import pickle
from typing import Any

import torch

from runtime.transport.protocol import Transport


def send_object(transport: Transport, value: Any, peer: int) -> None:
    """Send a picklable value: its size as one message, its bytes as a second one."""
    data = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
    size = torch.tensor([data.numel()], dtype=torch.int64)
    for tensor in (size, data):
        transport.wait(transport.post_send([tensor.to(transport.device)], peer))


def receive_object(transport: Transport, peer: int) -> Any:
    """Receive what `peer` sends with `send_object`; peers are processes of the same run."""
    size = torch.empty(1, dtype=torch.int64, device=transport.device)
    transport.wait(transport.post_receive([size], peer))
    data = torch.empty(int(size.item()), dtype=torch.uint8, device=transport.device)
    transport.wait(transport.post_receive([data], peer))
    return pickle.loads(data.cpu().numpy().tobytes())
