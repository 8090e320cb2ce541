"""A network in memory: queues of transfers, rendezvous, links that take time, and deadlocks seen.

Progress is made by whoever posts, under one lock; a rank is running, waiting, or finished. When
none is running and no transfer can start, the waiting ones can never go on.

Links that take time need no clock to be watched. When a transfer starts, which is when both sides
have posted it and what is ahead of either in its queue has ended, its end is computed; who waits
for it sleeps until then. An end may lie in the future when the next transfer is put behind it::

    rank 0    post a ────── a ──────┐
               post b                └───── b ──────
    rank 1       post a  post b
                  │<─── duration ───>│<─ duration ─>│     (one queue for both)
"""

import threading
import time
from collections import defaultdict, deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, Literal

import torch
from torch._C._distributed_c10d import HashStore

from runtime.transport.protocol import ConnectionLostError, TransportError
from schemas.transport import Queues


class DeadlockError(TransportError):
    """The ranks wait for each other, and none can go on."""


@dataclass(frozen=True)
class Link:
    """How long a message travels once both sides have posted it; by default not at all."""

    seconds: float = 0.0
    """Of every message: its latency, or all of it."""
    bytes_per_second: float | None = None
    """Bandwidth; `None`: without limit."""

    def duration(self, nbytes: int) -> float:
        """Seconds that a message of `nbytes` travels."""
        return self.seconds + (nbytes / self.bytes_per_second if self.bytes_per_second else 0.0)


Kind = Literal["send", "receive", "meeting"]


@dataclass(eq=False)
class Operation:
    """One end of a transfer, or a part in a meeting of ranks."""

    kind: Kind
    owner: int
    others: tuple[int, ...]
    """The peer of a transfer; all members of a meeting, the owner included."""
    name: str = ""
    """What a meeting is for; the members have to agree on it."""
    views: list[torch.Tensor] = field(default_factory=list)
    joined: bool = False
    message: list[torch.Tensor] = field(default_factory=list)
    contribution: Any = None
    contributions: list[Any] = field(default_factory=list)
    posted: float = 0.0
    ends: float | None = None
    """When the transfer ends, known as soon as it can start."""
    waited: bool = False

    def __str__(self) -> str:
        if self.kind == "meeting":
            return f"{self.name} with {', '.join(map(str, self.others))}"
        return f"{self.kind} {'to' if self.kind == 'send' else 'from'} {self.others[0]}"


@dataclass(eq=False)
class _Queue:
    """Entries in the order in which they were posted, each an operation or the rest of a group."""

    entries: deque[list[Operation]] = field(default_factory=deque)
    free: float = 0.0
    """When the entry in front can start: when the one before it ended."""
    ended: float = 0.0
    """When the last of the entry in front ended so far."""

    def take(self, operation: Operation, ends: float) -> None:
        """Let an operation of the entry in front end."""
        operation.ends = ends
        self.ended = max(self.ended, ends)
        self.entries[0].remove(operation)
        if not self.entries[0]:
            self.entries.popleft()
            self.free = self.ended


class Network:
    """Moves the messages of `ranks` x `replicas` threads."""

    def __init__(
        self,
        ranks: int,
        replicas: int = 1,
        *,
        queue: Queues = "stage",
        link: Link | None = None,
    ) -> None:
        """Create the network.

        Args:
            ranks: The ranks of each replica.
            replicas: Data-parallel copies of the pipeline.
            queue: Whether all transfers of a rank queue up behind each other, which is the
                strictest, or only those of a channel.
            link: How long messages travel; default: they arrive at once.
        """
        self.ranks, self.replicas = ranks, replicas
        self._by_channel, self._link = queue == "channel", link or Link()
        self.store = HashStore()
        """Where the threads tell each other of failures."""
        self._changed = threading.Condition()
        self._successor: Network | None = None
        self._aborted: set[int] = set()
        self._queues: defaultdict[Hashable, _Queue] = defaultdict(_Queue)
        self._waiting: dict[int, Operation] = {}
        self._finished: set[int] = set()
        self._failure: BaseException | None = None

    def require_queues_of_channels(self) -> None:
        """Refuse to have channels wait for each other.

        Raises:
            TransportError: they do.
        """
        if not self._by_channel:
            raise TransportError(
                "queue is 'stage', but several stages on a rank lead the channels around in a "
                "circle, in which one queue on each rank would wait for itself: needed 'channel'"
            )

    def successor(self) -> "Network":
        """The network that takes the place of this one after a failure, the same for all."""
        with self._changed:
            if self._successor is None:
                queue: Queues = "channel" if self._by_channel else "stage"
                self._successor = Network(self.ranks, self.replicas, queue=queue, link=self._link)
                self._successor.store = self.store
            return self._successor

    def give_up(self, rank: int) -> None:
        """End whatever a rank waits for, or will."""
        with self._changed:
            self._aborted.add(rank)
            self._changed.notify_all()

    def post(self, owner: int, group: list[Operation]) -> None:
        """Put one operation, or a group, at the end of the queue of `owner`; start what can start.

        Where every channel has its queue, a group enters each of those that it touches.
        """
        with self._changed:
            self._raise_failure(owner)
            assert all(operation.owner == owner for operation in group)
            now = time.perf_counter()
            entries: defaultdict[_Queue, list[Operation]] = defaultdict(list)
            for operation in group:
                operation.posted = now
                entries[self._queue_of(operation)].append(operation)
            for queue, entry in entries.items():
                queue.entries.append(entry)
            if self._progress(list(entries)):
                self._changed.notify_all()

    def wait(self, operation: Operation) -> None:
        """Block until the operation has ended, or cannot end any more."""
        with self._changed:
            self._waiting[operation.owner] = operation
            self._detect_deadlock()
            rank = operation.owner
            while operation.ends is None and not (self._failure or rank in self._aborted):
                self._changed.wait()
            del self._waiting[operation.owner]
            if operation.ends is None:
                self._raise_failure(rank, operation)
                raise AssertionError("woken without a reason")
        left = operation.ends - time.perf_counter()
        if left > 0:
            time.sleep(left)

    def finish(self, rank: int, failure: BaseException | None = None) -> None:
        """Declare that a thread has ended, and with which error if not well."""
        with self._changed:
            self._finished.add(rank)
            if self._failure is None:
                self._failure = failure
            self._detect_deadlock()
            self._changed.notify_all()

    def _raise_failure(self, rank: int, operation: Operation | None = None) -> None:
        if rank in self._aborted:
            peer = None
            if operation is not None and operation.kind != "meeting":
                (peer,) = operation.others
            what = operation or "an operation"
            raise ConnectionLostError(f"{what} failed: its rank abandoned the network", peer)
        if isinstance(self._failure, DeadlockError):
            raise self._failure
        if self._failure is not None:
            raise ConnectionLostError(f"another rank failed: {self._failure!r}") from self._failure

    def _queue(self, owner: int, kind: Kind, others: tuple[int, ...]) -> _Queue:
        return self._queues[(owner, kind, others) if self._by_channel else owner]

    def _queue_of(self, operation: Operation) -> _Queue:
        return self._queue(operation.owner, operation.kind, operation.others)

    def _progress(self, queues: list[_Queue]) -> bool:
        """Start what can start in these queues, and then behind it; whether anything could."""
        moved = False
        while queues:
            queue = queues.pop()
            while ready := self._ready(queue):
                sizes = (view.numel() for view in ready[0].message)
                duration = self._link.duration(sum(sizes)) if ready[0].kind != "meeting" else 0.0
                start = max(max(o.posted, self._queue_of(o).free) for o in ready)
                for operation in ready:
                    self._queue_of(operation).take(operation, start + duration)
                    queues.append(self._queue_of(operation))
                moved = True
        return moved

    def _ready(self, queue: _Queue) -> list[Operation] | None:
        """Operations that start together with a member of a queue's front, all in front."""
        matches = map(self._match, queue.entries[0] if queue.entries else ())
        return next(filter(None, matches), None)

    def _match(self, operation: Operation) -> list[Operation] | None:
        if operation.kind == "meeting":
            return self._meeting(operation)
        opposite: Kind = "receive" if operation.kind == "send" else "send"
        (peer,) = operation.others
        there = self._queue(peer, opposite, (operation.owner,)).entries
        counterparts = (
            other
            for other in (there[0] if there else ())
            if other.kind == opposite and other.others == (operation.owner,)
        )
        other = next(counterparts, None)
        if other is None:
            return None
        send, receive = (operation, other) if operation.kind == "send" else (other, operation)
        self._check_sizes(send, receive)
        receive.message = [torch.cat(send.message)] if send.joined else send.message
        return [send, receive]

    def _meeting(self, operation: Operation) -> list[Operation] | None:
        queues = (self._queue(r, "meeting", operation.others) for r in operation.others)
        meeting = [queue.entries[0][0] for queue in queues if queue.entries]
        agreed = ("meeting", operation.name, operation.others)
        if len(meeting) < len(operation.others) or any(
            (other.kind, other.name, other.others) != agreed for other in meeting
        ):
            return None
        for member in meeting:
            member.contributions = [other.contribution for other in meeting]
        return meeting

    def _check_sizes(self, send: Operation, receive: Operation) -> None:
        sent = [view.numel() for view in send.views]
        expected = [view.numel() for view in receive.views]
        fits = sum(sent) <= sum(expected) if send.joined else sent == expected
        if not (fits and send.joined == receive.joined) and self._failure is None:
            how = " joined into at most" if receive.joined else ""
            self._failure = TransportError(
                f"rank {send.owner} sends {sent} bytes{' joined' if send.joined else ''} "
                f"to rank {receive.owner}, which receives{how} {expected}"
            )
            self._changed.notify_all()
            raise self._failure

    def _detect_deadlock(self) -> None:
        stuck = {rank: op for rank, op in self._waiting.items() if op.ends is None}
        all_ranks = len(stuck) + len(self._finished) == self.ranks * self.replicas
        if all_ranks and stuck and self._failure is None:
            lines = [
                f"  rank {r} waits in {op}, behind {self._ahead(op)}" for r, op in stuck.items()
            ]
            gone = f"; finished: {sorted(self._finished)}" if self._finished else ""
            self._failure = DeadlockError("\n".join([f"no rank can go on{gone}", *sorted(lines)]))
            self._changed.notify_all()

    def _ahead(self, operation: Operation) -> str:
        entries = self._queue_of(operation).entries
        ahead = takewhile(lambda entry: operation not in entry, entries)
        return "; ".join(str(other) for entry in ahead for other in entry) or "nothing"
