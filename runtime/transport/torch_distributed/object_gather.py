"""Objects from all members of a group, in one round where they are small.

Contents of unknown size take two rounds: sizes, then contents. What ranks agree on before every
evaluation is small, and each round costs all of them a wait for the slowest.
"""

import struct
from collections.abc import Callable
from typing import Any

import torch

from runtime.tensors.decoding import decode
from runtime.tensors.encoding import encode

FIRST_ROUND = 12 * 1024
"""Bytes that all members exchange first: a size, and as much of the object as there is room.

Enough for what is known of the 64 micro-batches that a rank fetches before a run.
"""

Round = Callable[[torch.Tensor], list[torch.Tensor]]
"""Gathers a tensor, of one size on all members, from all of them: by rank, on the CPU."""

_SIZE = struct.Struct("<q")
_ROOM = FIRST_ROUND - _SIZE.size


def gather_objects(value: Any, all_gather: Round) -> list[Any]:
    """The `value` of every member, which are processes of one run, by rank."""
    data = encode(value)
    gathered = _gather(_SIZE.pack(len(data)) + data[:_ROOM], FIRST_ROUND, all_gather)
    sizes = [_SIZE.unpack_from(message)[0] for message in gathered]
    contents = [message[_SIZE.size :] for message in gathered]
    if (longest := max(sizes)) > _ROOM:
        rest = _gather(data[_ROOM:], longest - _ROOM, all_gather)
        contents = [start + end for start, end in zip(contents, rest, strict=True)]
    return [decode(content[:size]) for content, size in zip(contents, sizes, strict=True)]


def _gather(data: bytes, size: int, all_gather: Round) -> list[bytes]:
    """The `data` of all, each filled up to `size` bytes."""
    own = torch.frombuffer(bytearray(data.ljust(size, b"\0")), dtype=torch.uint8)
    return [message.numpy().tobytes() for message in all_gather(own)]
