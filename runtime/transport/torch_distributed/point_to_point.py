"""Transfers on a process group, begun alone or several as one operation."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist

from schemas import Direction

_TAG = 0


class Call(NamedTuple):
    """One tensor to be sent to, or received from, a rank of the group."""

    direction: Direction
    tensor: torch.Tensor
    peer: int


def begin(group: dist.ProcessGroup, call: Call) -> dist.Work:
    """What `dist.isend` and `dist.irecv` come down to, without what they ask on every call."""
    if call.direction is Direction.SEND:
        return group.send([call.tensor], call.peer, _TAG)
    return group.recv([call.tensor], call.peer, _TAG)


def begin_together(
    group: dist.ProcessGroup, calls: Sequence[Call], batch_on: torch.device | None
) -> list[dist.Work]:
    """Begin several transfers, of which none waits for another.

    Args:
        group: Where.
        calls: In the order in which messages between the same ranks match.
        batch_on: The device of NCCL's group, where they have to be one operation; else `None`.

    Returns:
        A work for each call: of one operation the same for all, which may be waited for repeatedly.
    """
    if batch_on is None or len(calls) < 2:
        return [begin(group, call) for call in calls]
    group._start_coalescing(batch_on)
    for call in calls:
        begin(group, call)
    return [group._end_coalescing(batch_on)] * len(calls)
