"""Control messages between neighbours: values of any size, in order with activations.

A value is one message of `ROOM` bytes, and where it is longer a second one with the rest.
"""

import struct
from typing import Any

import numpy as np
import torch

from runtime.device import Clock
from runtime.tensors.decoding import decode
from runtime.tensors.encoding import encode
from runtime.tensors.ownership import Take, fresh
from runtime.transport.protocol import Pending, Transport, TransportError

ROOM = 1024
"""Bytes of the first message."""

WINDOW_ROOM = 16 * 1024
"""Bytes of a message with a window, which is always a single one."""

_SIZE = struct.Struct("<q")
_FIRST = ROOM - _SIZE.size


def post_object(transport: Transport, value: Any, peer: int, take: Take = fresh) -> list[Pending]:
    """Begin to send a value; what is returned has to be waited for."""
    return [transport.post_send([part], peer) for part in packed(value, transport.device, take)]


def send_object(transport: Transport, value: Any, peer: int) -> None:
    """Send a value, and wait until it is received."""
    for pending in post_object(transport, value, peer):
        transport.wait(pending)


def receive_object(transport: Transport, peer: int) -> Any:
    """Receive what `peer` sends with `post_object`; peers are processes of the same run."""
    first = torch.empty(ROOM, dtype=torch.uint8, device=transport.device)
    transport.wait(transport.post_receive([first], peer))
    return unpacked(first, transport, peer)


def packed(value: Any, device: torch.device, take: Take = fresh) -> list[torch.Tensor]:
    """The messages that carry a value, uint8.

    Args:
        value: One that can be encoded.
        device: Where messages are moved from.
        take: Gives their memory.
    """
    data = encode(value)
    first = (_SIZE.pack(len(data)) + data[:_FIRST]).ljust(ROOM, b"\0")
    parts = [first, data[_FIRST:]] if len(data) > _FIRST else [first]
    return [_message(part, device, take) for part in parts]


def packed_in(room: int, value: Any, device: torch.device, take: Take = fresh) -> torch.Tensor:
    """A single message of `room` bytes that carries a value, uint8.

    Raises:
        TransportError: there is not room enough.
    """
    data = encode(value)
    if len(data) > room - _SIZE.size:
        raise TransportError(f"a message of {len(data)} bytes, needed at most {room - _SIZE.size}")
    return _message((_SIZE.pack(len(data)) + data).ljust(room, b"\0"), device, take)


def unpacked_from(message: torch.Tensor, transport: Transport) -> Any:
    """The value in a message of `packed_in` that has been received."""
    data = transport.to_host(message).numpy().tobytes()
    (size,) = _SIZE.unpack_from(data)
    return decode(data[_SIZE.size :][:size])


def _message(content: bytes, device: torch.device, take: Take) -> torch.Tensor:
    message = take(len(content), 0, torch.device("cpu"))
    message.numpy()[:] = np.frombuffer(content, dtype=np.uint8)
    return Clock(device).upload(message)


def unpacked(first: torch.Tensor, transport: Transport, peer: int) -> Any:
    """The value whose first message has been received; the rest of a long one is waited for."""
    data = transport.to_host(first).numpy().tobytes()
    (size,) = _SIZE.unpack_from(data)
    content = data[_SIZE.size :][:size]
    if size > _FIRST:
        rest = torch.empty(size - _FIRST, dtype=torch.uint8, device=transport.device)
        transport.wait(transport.post_receive([rest], peer))
        content += transport.to_host(rest).numpy().tobytes()
    return decode(content)
