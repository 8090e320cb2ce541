"""Picklable objects from all members of a process group, in one round where they are small.

`torch.distributed.all_gather_object` takes two: sizes, then contents. What stages agree on before
every evaluation is small, and each round costs all of them a wait for the slowest.
"""

import pickle
import struct
from typing import Any

import torch
import torch.distributed as dist

FIRST_ROUND = 4096
"""Bytes that everybody hands around first: a size, and as much of the object as there is room."""

_SIZE = struct.Struct("<q")
_ROOM = FIRST_ROUND - _SIZE.size


def gather_objects(value: Any, group: dist.ProcessGroup, device: torch.device) -> list[Any]:
    """The `value` of every member of `group`, which are processes of one run, by group rank."""
    data = pickle.dumps(value)
    everyone = _gather(_SIZE.pack(len(data)) + data[:_ROOM], FIRST_ROUND, group, device)
    sizes = [_SIZE.unpack_from(message)[0] for message in everyone]
    contents = [message[_SIZE.size :] for message in everyone]
    if (longest := max(sizes)) > _ROOM:
        rest = _gather(data[_ROOM:], longest - _ROOM, group, device)
        contents = [start + end for start, end in zip(contents, rest, strict=True)]
    return [pickle.loads(content[:size]) for content, size in zip(contents, sizes, strict=True)]


def _gather(data: bytes, size: int, group: dist.ProcessGroup, device: torch.device) -> list[bytes]:
    """Everybody's `data`, each filled up to `size` bytes."""
    mine = torch.frombuffer(bytearray(data.ljust(size, b"\0")), dtype=torch.uint8).to(device)
    everyone = torch.empty(group.size(), size, dtype=torch.uint8, device=device)
    dist.all_gather(list(everyone.unbind()), mine, group=group)
    return [row.tobytes() for row in everyone.cpu().numpy()]
