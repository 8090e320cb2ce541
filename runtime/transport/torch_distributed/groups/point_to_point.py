"""Transfers on a process group, begun alone or several as one operation."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

import torch
import torch.distributed as dist

from runtime.transport.protocol import TransportError
from runtime.transport.torch_distributed.groups.nccl import refuse_from_here
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

    Raises:
        TransportError: a tensor is not on that device; nothing has begun.
    """
    if batch_on is None:
        return [begin(group, call) for call in calls]
    require_on(batch_on, [call.tensor for call in calls])
    if len(calls) < 2:
        return [begin(group, call) for call in calls]
    try:
        group._start_coalescing(batch_on)
        for call in calls:
            begin(group, call)
    except BaseException as error:
        refuse_from_here(error)
        with suppress(Exception):  # the first error is the one to be told
            group._end_coalescing(batch_on)
        raise
    try:
        return [group._end_coalescing(batch_on)] * len(calls)
    except BaseException as error:
        refuse_from_here(error)
        raise


def require_on(device: torch.device, tensors: Iterable[torch.Tensor]) -> None:
    """Ask what NCCL would refuse, before anything is posted: are the tensors on that GPU?

    Raises:
        TransportError: naming the first that is not.
    """
    for tensor in tensors:
        if tensor.device != device:
            raise TransportError(
                f"{tensor.nbytes} bytes to be moved are on {tensor.device}, needed on {device}"
            )
