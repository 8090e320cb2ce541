"""Ranks as threads with a stream each, over memory; copies run on streams of their own.

Like NCCL, a transfer runs beside what the rank computes, after what the rank had enqueued when it
was posted, and a wait makes the rank's stream wait, not the host. Unlike it, every copy is late::

    rank 0's stream    forward m ─ event ─────────── forward m+1 ...
    its copy stream                   └ busy, copy into the message ─ event
    rank 1's copy stream                                              └ busy, copy into the place
    rank 1's stream    (busy with something else)             waits for that ─ forward m
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from benchmarks.gpu.machine import Machine
from runtime.device import Clock
from runtime.testing import InMemoryNetwork, InMemoryTransport
from runtime.testing.in_memory import run_ends
from runtime.testing.network import Operation
from runtime.transport.protocol import Pending, as_bytes
from schemas import Direction

Result = TypeVar("Result")
LATE = 5e-4
"""Seconds that a copy stream is busy before each copy."""
PATIENCE = 60.0


class StreamTransport(InMemoryTransport):
    """One rank's end, used by the thread whose stream is the rank's."""

    def __init__(self, network: InMemoryNetwork, rank: int, machine: Machine) -> None:
        """Take the end of `rank`."""
        super().__init__(network, rank, 0)
        self.device = machine.device
        self._machine, self._copies = machine, machine.stream()
        self._filled: dict[int, Any] = network.__dict__.setdefault("filled", {})
        """By the number of a message's tensor: when it is there."""

    def joins(self, direction: Direction, peer: int) -> bool:  # noqa: ARG002 - as on NCCL
        """No channel does."""
        return False

    def receive_memory(self, nbytes: int) -> torch.Tensor:
        """Of the GPU."""
        return torch.empty(nbytes, dtype=torch.uint8, device=self.device)

    def post_send(
        self, payload: Sequence[torch.Tensor], peer: int, *, joined: bool = False
    ) -> Pending:
        """Begin to copy what the rank's stream will have made."""
        assert not joined
        views = [as_bytes(tensor) for tensor in payload]
        operation = Operation("send", self.global_rank, (self._global_rank_of(peer),), views=views)
        self._copies.wait_stream(self._machine.current_stream())
        with self._machine.on(self._copies):
            self._machine.busy(LATE)
            operation.message = [view.clone() for view in views]
        for view, message in zip(views, operation.message, strict=True):
            self._machine.used_on(view, self._copies)
            self._filled[id(message)] = self._copies.record_event()
        return self._post(operation)

    def post_receive(
        self, places: Sequence[torch.Tensor], peer: int, *, joined: bool = False
    ) -> Pending:
        """Let what comes be copied behind what the rank's stream has been given by now."""
        pending = super().post_receive(places, peer, joined=joined)  # fills the places with NaN
        self._copies.wait_stream(self._machine.current_stream())
        return pending

    def wait(self, pending: Pending) -> None:
        """Make the rank's stream wait."""
        assert isinstance(pending, Operation)
        self._network.wait(pending)
        if pending.kind == "receive":
            for view, message in zip(pending.views, pending.message, strict=True):
                self._copies.wait_event(self._filled.pop(id(message)))
                with self._machine.on(self._copies):
                    self._machine.busy(LATE)
                    view.copy_(message)
                self._machine.used_on(message, self._copies)
        self._machine.current_stream().wait_stream(self._copies)

    def to_host(self, message: torch.Tensor) -> torch.Tensor:
        """Copy a message that is on the GPU."""
        return Clock(self.device).download(message, lambda: None)

    def broadcast(self, tensor: torch.Tensor, source: int) -> None:
        """Hand `tensor` of rank `source` to all."""
        self._machine.synchronize()
        super().broadcast(tensor, source)
        self._machine.synchronize()


def over_streams(
    machine: Machine, ranks: int, function: Callable[[StreamTransport], Result]
) -> list[Result]:
    """What `function(end)` returns on each rank, in threads with streams of their own.

    Raises:
        BaseException: the first error of any of them.
        TimeoutError: they do not end.
    """
    network = InMemoryNetwork(ranks)
    ends = [StreamTransport(network, rank, machine) for rank in range(ranks)]

    def body(end: StreamTransport) -> Result:
        with machine.on(machine.stream()):
            return function(end)

    return run_ends(ends, body, PATIENCE)
