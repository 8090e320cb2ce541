"""Transfers that have been posted, over a process group or a local channel."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from runtime.transport.protocol import ConnectionLostError
from runtime.transport.shared_memory.endpoint import (
    ChannelEnd,
    LocalTransfer,
    raised_by_loader,
)
from runtime.transport.torch_distributed.channel_groups import Route
from runtime.transport.torch_distributed.groups.point_to_point import Call, begin_together
from schemas import Direction


@dataclass(slots=True)
class Posted:
    """One message on its way to or from a peer."""

    direction: Direction
    peer: int
    way: Route | ChannelEnd
    views: list[torch.Tensor]
    """Kept alive until the wait."""
    joined: bool = False
    works: list[dist.Work | LocalTransfer] = field(default_factory=list)
    """What is to be waited for; empty while the transfer is held back in a group."""

    @property
    def in_group(self) -> bool:
        """Whether it goes through a process group."""
        return isinstance(self.way, Route)

    def wait(self, wait_in_group: Callable[[dist.Work], None]) -> None:
        """Wait for it; `wait_in_group` does so for what goes through a process group."""
        for work in self.works:
            if isinstance(work, LocalTransfer):
                work.wait()
            else:
                wait_in_group(work)

    def __str__(self) -> str:
        way = "send to" if self.direction is Direction.SEND else "receive from"
        return f"{way} rank {self.peer}"


def failure_of(what: object, error: RuntimeError, peer: int | None) -> ConnectionLostError:
    """What is told of a backend's error: what it said, without the line of its source and advice.

    Raises:
        RuntimeError: it is not of the backend, see `raised_by_loader`.
    """
    if raised_by_loader(error):
        raise error
    text = str(error).partition(" This is typically caused by")[0]
    reason = re.sub(r"^\[\S+:\d+\] ", "", text).rstrip(".")
    return ConnectionLostError(f"{what} failed: {reason}", peer)


def together(held: Sequence[Posted]) -> list[list[Posted]]:
    """Those that have to begin as one operation: all of one process group."""
    by_group: dict[int, list[Posted]] = {}
    for posted in held:
        key = id(posted.way.group) if isinstance(posted.way, Route) else id(posted)
        by_group.setdefault(key, []).append(posted)
    return list(by_group.values())


def begin_posted(members: Sequence[Posted], batch_on: torch.device | None) -> None:
    """Begin a transfer alone, or several of one process group as one entry of its queue.

    Args:
        members: The transfers, `together`.
        batch_on: As of `begin_together`.

    Raises:
        RuntimeError: what the process group or the channel raises.
    """
    calls = []
    for posted in members:
        if isinstance(posted.way, Route):
            calls += [Call(posted.direction, view, posted.way.peer) for view in posted.views]
            group = posted.way.group
        else:
            posted.works.append(posted.way.begin(posted.views, joined=posted.joined))
    if calls:
        works = iter(begin_together(group, calls, batch_on))
        for posted in members:
            posted.works.extend(work for _, work in zip(posted.views, works, strict=False))
