"""Transport in memory: the stages are threads of one process. Stricter than any real transport.

- One in-order queue per stage, strict rendezvous: a transfer starts when everything that its stage
  posted before has ended, and ends when its counterpart has started too. A group is one entry of
  the queue, whose members start together and end each on its own.
- What a receive will bring is not there before its wait: the place is filled with garbage when the
  receive is posted and with the message in the wait. A place that was written meanwhile, and a
  payload that was changed while it was being sent, are errors.
- A deadlock is detected the moment it happens, and reported with who waits for whom.

Progress is made by whoever posts, under one lock; a stage is running, waiting, or finished. When
none is running and no transfer can start, the waiting ones can never go on.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, Literal, TypeVar

import torch

from runtime.transport.protocol import Pending, TransportError, as_bytes

Result = TypeVar("Result")
_GARBAGE = 0xFF  # all bits set: NaN in every floating-point format, -1 in every signed integer


class DeadlockError(TransportError):
    """The stages wait for each other, and none can go on."""


@dataclass(eq=False)
class _Operation:
    """An entry of a stage's queue: one end of a transfer, or a part in a meeting of stages."""

    kind: Literal["send", "receive", "meeting"]
    owner: int
    others: tuple[int, ...]
    """The peer of a transfer; all members of a meeting, the owner included."""
    name: str = ""
    """What a meeting is for; the members have to agree on it."""
    views: list[torch.Tensor] = field(default_factory=list)
    message: list[torch.Tensor] = field(default_factory=list)
    contribution: Any = None
    contributions: list[Any] = field(default_factory=list)
    done: bool = False
    waited: bool = False

    def __str__(self) -> str:
        if self.kind == "meeting":
            return f"{self.name} with {', '.join(map(str, self.others))}"
        return f"{self.kind} {'to' if self.kind == 'send' else 'from'} {self.others[0]}"


class InMemoryNetwork:
    """Connects `stages` x `replicas` threads."""

    def __init__(self, stages: int, replicas: int = 1) -> None:
        """Create the network; `endpoint` gives each thread its end."""
        self.stages, self.replicas = stages, replicas
        self._changed = threading.Condition()
        self._queues: list[deque[list[_Operation]]] = [deque() for _ in range(stages * replicas)]
        self._waiting: dict[int, _Operation] = {}
        self._finished: set[int] = set()
        self._failure: BaseException | None = None

    def endpoint(self, stage_id: int, replica: int = 0) -> "InMemoryTransport":
        """The end of one stage."""
        return InMemoryTransport(self, stage_id, replica)

    def post(self, owner: int, entry: list[_Operation]) -> None:
        """Put one operation, or a group, at the end of its owner's queue; start what can start."""
        with self._changed:
            self._raise_failure()
            self._queues[owner].append(list(entry))
            if self._progress():
                self._changed.notify_all()

    def wait(self, operation: _Operation) -> None:
        """Block until the operation has ended, or cannot end any more."""
        with self._changed:
            self._waiting[operation.owner] = operation
            self._detect_deadlock()
            while not operation.done and self._failure is None:
                self._changed.wait()
            del self._waiting[operation.owner]
            if not operation.done:
                self._raise_failure()

    def finish(self, rank: int, failure: BaseException | None = None) -> None:
        """Declare that a thread has ended, and with which error if not well."""
        with self._changed:
            self._finished.add(rank)
            if self._failure is None:
                self._failure = failure
            self._detect_deadlock()
            self._changed.notify_all()

    def _raise_failure(self) -> None:
        if isinstance(self._failure, DeadlockError):
            raise self._failure
        if self._failure is not None:
            raise TransportError(f"another stage failed: {self._failure!r}") from self._failure

    def _progress(self) -> bool:
        moved = False
        while ready := next(filter(None, map(self._ready, self._queues)), None):
            for operation in ready:
                queue = self._queues[operation.owner]
                queue[0].remove(operation)
                if not queue[0]:
                    queue.popleft()
                operation.done = True
            moved = True
        return moved

    def _ready(self, queue: deque[list[_Operation]]) -> list[_Operation] | None:
        """Operations that start together with a member of a queue's first entry, all in front."""
        matches = map(self._match, queue[0] if queue else ())
        return next(filter(None, matches), None)

    def _match(self, front: _Operation) -> list[_Operation] | None:
        entries = [self._queues[rank][0] for rank in front.others if self._queues[rank]]
        if len(entries) < len(front.others):
            return None
        if front.kind == "meeting":
            meeting = [entry[0] for entry in entries]
            agreed = ("meeting", front.name, front.others)
            if any((other.kind, other.name, other.others) != agreed for other in meeting):
                return None
            for operation in meeting:
                operation.contributions = [other.contribution for other in meeting]
            return meeting
        (entry,) = entries
        receives = (o for o in entry if o.kind == "receive" and o.others == (front.owner,))
        peer = next(receives, None)
        if front.kind != "send" or peer is None:
            return None  # a receive in front starts when its send looks for it
        self._check_sizes(front, peer)
        peer.message = front.message
        return [front, peer]

    def _check_sizes(self, send: _Operation, receive: _Operation) -> None:
        sent = [view.numel() for view in send.views]
        expected = [view.numel() for view in receive.views]
        if sent != expected and self._failure is None:
            self._failure = TransportError(
                f"rank {send.owner} sends {sent} bytes to rank {receive.owner}, "
                f"which receives {expected}"
            )
            self._changed.notify_all()
            raise self._failure

    def _detect_deadlock(self) -> None:
        stuck = {rank: op for rank, op in self._waiting.items() if not op.done}
        everyone = len(stuck) + len(self._finished) == len(self._queues)
        if everyone and stuck and self._failure is None:
            lines = [
                f"  rank {r} waits in {op}, behind {self._ahead(op)}" for r, op in stuck.items()
            ]
            gone = f"; finished: {sorted(self._finished)}" if self._finished else ""
            self._failure = DeadlockError("\n".join([f"no stage can go on{gone}", *sorted(lines)]))
            self._changed.notify_all()

    def _ahead(self, operation: _Operation) -> str:
        entries = takewhile(lambda entry: operation not in entry, self._queues[operation.owner])
        return "; ".join(str(other) for entry in entries for other in entry) or "nothing"


class InMemoryTransport:
    """One stage's end of an in-memory network."""

    def __init__(self, network: InMemoryNetwork, stage_id: int, replica: int) -> None:
        """Take the end of `stage_id` in `replica`."""
        self._network, self._stage_id, self._replica = network, stage_id, replica
        self._rank = replica * network.stages + stage_id
        self._group: list[_Operation] | None = None

    @property
    def stage_id(self) -> int:
        """The stage of this end."""
        return self._stage_id

    @property
    def stages(self) -> int:
        """The number of stages of a replica."""
        return self._network.stages

    @property
    def replica(self) -> int:
        """The replica of this end."""
        return self._replica

    @property
    def replicas(self) -> int:
        """The number of replicas."""
        return self._network.replicas

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    @property
    def rank(self) -> int:
        """Position among all threads of the network."""
        return self._rank

    def post_send(self, payload: Sequence[torch.Tensor], peer: int) -> Pending:
        """Begin to send; see `Transport`."""
        views = [as_bytes(tensor) for tensor in payload]
        message = [view.clone() for view in views]
        operation = _Operation("send", self._rank, (self._rank_of(peer),), views=views)
        operation.message = message
        return self._post(operation)

    def post_receive(self, places: Sequence[torch.Tensor], peer: int) -> Pending:
        """Begin to receive; see `Transport`."""
        views = [as_bytes(tensor).fill_(_GARBAGE) for tensor in places]
        return self._post(_Operation("receive", self._rank, (self._rank_of(peer),), views=views))

    def start_group(self) -> None:
        """Hold posts back; see `Transport`."""
        assert self._group is None, "groups do not nest"
        self._group = []

    def end_group(self) -> None:
        """Put what was held back into the queue as one entry."""
        assert self._group is not None, "no group was started"
        group, self._group = self._group, None
        if group:
            self._network.post(self._rank, group)

    def wait(self, pending: Pending) -> None:
        """Wait for a posted transfer."""
        assert isinstance(pending, _Operation)
        if pending.waited:
            raise TransportError(f"rank {self._rank}: {pending} is waited for a second time")
        pending.waited = True
        self._network.wait(pending)
        for view, message in zip(pending.views, pending.message, strict=True):
            if pending.kind == "receive" and not bool((view == _GARBAGE).all()):
                raise TransportError(f"rank {self._rank}: place written during {pending}")
            if pending.kind == "send" and not torch.equal(view, message):
                raise TransportError(f"rank {self._rank}: payload changed during {pending}")
            view.copy_(message)

    def broadcast(self, tensor: torch.Tensor, source: int) -> None:
        """Hand `tensor` of stage `source` to all stages of the replica."""
        tensor.copy_(self._meet("broadcast", self._pipeline, tensor.clone())[source])

    def gather_objects(self, value: Any) -> list[Any]:
        """Every stage's `value`."""
        return self._meet("gather", self._pipeline, value)

    def gather_from_replicas(self, value: Any) -> list[Any]:
        """The `value` of this stage in every replica."""
        return self._meet("gather from replicas", self._peers, value)

    def connect(self, peers: Iterable[int]) -> None:
        """Nothing to warm up; checks that both ends of every connection want it."""
        wanted = self.gather_objects(sorted(set(peers)))
        for peer in wanted[self._stage_id]:
            if self._stage_id not in wanted[peer]:
                raise TransportError(f"stage {peer} does not connect to stage {self._stage_id}")

    @property
    def _pipeline(self) -> tuple[int, ...]:
        return tuple(self._rank_of(stage) for stage in range(self.stages))

    @property
    def _peers(self) -> tuple[int, ...]:
        """This stage in all replicas."""
        return tuple(range(self._stage_id, self.replicas * self.stages, self.stages))

    def _rank_of(self, stage_id: int) -> int:
        return self._replica * self.stages + stage_id

    def _meet(self, name: str, members: tuple[int, ...], contribution: Any) -> list[Any]:
        operation = _Operation("meeting", self._rank, members, name, contribution=contribution)
        self._network.post(self._rank, [operation])
        self._network.wait(operation)
        return operation.contributions

    def _post(self, operation: _Operation) -> _Operation:
        if self._group is None:
            self._network.post(self._rank, [operation])
        else:
            self._group.append(operation)
        return operation


def run_stages(
    stages: int,
    function: Callable[[InMemoryTransport], Result],
    *,
    replicas: int = 1,
    timeout: float = 60.0,
) -> list[Result]:
    """Run `function(endpoint)` in a thread for each stage, and return what each returned.

    Results come in rank order (the stages of the first replica, then those of the next).

    Raises:
        BaseException: the first error that any of the threads raised.
        TimeoutError: the threads did not end within `timeout` seconds.
    """
    network = InMemoryNetwork(stages, replicas)
    results: dict[int, Result] = {}
    errors: list[BaseException] = []

    def body(endpoint: InMemoryTransport) -> None:
        try:
            results[endpoint.rank] = function(endpoint)
        except BaseException as error:  # reported by the caller's thread
            errors.append(error)
            network.finish(endpoint.rank, error)
        else:
            network.finish(endpoint.rank)

    endpoints = [network.endpoint(s, r) for r in range(replicas) for s in range(stages)]
    threads = [threading.Thread(target=body, args=(end,), daemon=True) for end in endpoints]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout)
    if errors:
        raise errors[0]
    if len(results) < len(threads):
        raise TimeoutError(f"{len(threads) - len(results)} stages still run after {timeout} s")
    return [results[rank] for rank in range(len(threads))]
