"""Transport in memory: the ranks are threads of one process. Stricter than any real transport.

- One in-order queue per rank, strict rendezvous: a transfer starts when everything that its rank
  posted before has ended, and ends when its counterpart has started too. A group is one entry of
  the queue, whose members start together and end each on its own. (On request: one queue per
  channel, and links on which messages take time.)
- What a receive will bring is not there before its wait: the place is filled with garbage when the
  receive is posted and with the message in the wait. A place that was written meanwhile, and a
  payload that was changed while it was being sent, are errors.
- A deadlock is detected the moment it happens, and reported with who waits for whom.
"""

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch

from runtime.testing.network import Link, Network, Operation
from runtime.transport.protocol import Pending, TransportError, as_bytes
from runtime.transport.rendezvous import RendezvousStore
from schemas import Direction
from schemas.transport import Queues

End = TypeVar("End", bound="InMemoryTransport")
Result = TypeVar("Result")
_GARBAGE = 0xFF  # all bits set: NaN in every floating-point format, -1 in every signed integer


class InMemoryNetwork(Network):
    """Connects `ranks` x `replicas` threads."""

    def endpoint(self, rank: int, replica: int = 0) -> "InMemoryTransport":
        """The end of one rank."""
        return InMemoryTransport(self, rank, replica)


class InMemoryTransport:
    """One rank's end of an in-memory network."""

    device = torch.device("cpu")
    name: str | None = None
    """A network holds one pipeline."""

    def __init__(self, network: Network, rank: int, replica: int) -> None:
        """Take the end of `rank` in `replica`."""
        self._network = network
        self.rank, self.ranks = rank, network.ranks
        self.replica, self.replicas = replica, network.replicas
        self.global_rank = self._global_rank_of(rank)
        """Its number among all threads of the network."""
        self.generation, self.usable = 0, True
        self._group: list[Operation] | None = None

    def joins(self, direction: Direction, peer: int) -> bool:  # noqa: ARG002 - all do
        """Every channel does."""
        return True

    def separate_channels(self) -> None:
        """Where each has a queue of its own; see `Transport`."""
        self._network.require_queues_of_channels()

    def post_send(
        self, payload: Sequence[torch.Tensor], peer: int, *, joined: bool = False
    ) -> Pending:
        """Begin to send; see `Transport`."""
        views = [as_bytes(tensor) for tensor in payload]
        message = [view.clone() for view in views]
        operation = Operation("send", self.global_rank, (self._global_rank_of(peer),), views=views)
        operation.message, operation.joined = message, joined
        return self._post(operation)

    def post_receive(
        self, places: Sequence[torch.Tensor], peer: int, *, joined: bool = False
    ) -> Pending:
        """Begin to receive; see `Transport`."""
        views = [as_bytes(tensor).fill_(_GARBAGE) for tensor in places]
        operation = Operation(
            "receive", self.global_rank, (self._global_rank_of(peer),), views=views
        )
        operation.joined = joined
        return self._post(operation)

    def receive_memory(self, nbytes: int) -> torch.Tensor:
        """Any memory will do."""
        return torch.empty(nbytes, dtype=torch.uint8)

    def release_memory(self, memory: torch.Tensor) -> None:
        """Nothing was given for it."""

    def start_group(self) -> None:
        """Hold posts back; see `Transport`."""
        assert self._group is None, "groups do not nest"
        self._group = []

    def end_group(self) -> None:
        """Put what was held back into the queue as one entry."""
        assert self._group is not None, "no group was started"
        group, self._group = self._group, None
        if group:
            self._network.post(self.global_rank, group)

    def wait(self, pending: Pending) -> None:
        """Wait for a posted transfer."""
        assert isinstance(pending, Operation)
        if pending.waited:
            raise TransportError(f"rank {self.global_rank}: {pending} is waited for a second time")
        pending.waited = True
        self._network.wait(pending)
        for view, message in zip(pending.views, pending.message, strict=True):
            if pending.kind == "receive" and not bool((view == _GARBAGE).all()):
                raise TransportError(f"rank {self.global_rank}: place written during {pending}")
            if pending.kind == "send" and not torch.equal(view, message):
                raise TransportError(f"rank {self.global_rank}: payload changed during {pending}")
            view[: message.numel()].copy_(message)  # all of it, unless it is joined

    def to_host(self, message: torch.Tensor) -> torch.Tensor:
        """It is there."""
        return message

    def broadcast(self, tensor: torch.Tensor, source: int) -> None:
        """Hand `tensor` of rank `source` to all ranks of the replica."""
        tensor.copy_(self._meet("broadcast", self._pipeline, tensor.clone())[source])

    def gather_objects(self, value: Any) -> list[Any]:
        """Every rank's `value`."""
        return self._meet("gather", self._pipeline, value)

    def gather_from_replicas(self, value: Any) -> list[Any]:
        """The `value` of this rank in every replica."""
        return self._meet("gather from replicas", self._peers, value)

    def connect(self, receives_from: Iterable[int], sends_to: Iterable[int]) -> None:
        """Nothing to warm up; checks that both ends of every channel want it."""
        wanted = self.gather_objects((set(receives_from), set(sends_to)))
        here = self.rank
        for source in wanted[here][0]:
            if here not in wanted[source][1]:
                raise TransportError(f"rank {source} does not connect to rank {here} to send")
        for destination in wanted[here][1]:
            if here not in wanted[destination][0]:
                raise TransportError(
                    f"rank {destination} does not connect to rank {here} to receive"
                )

    @property
    def rendezvous(self) -> RendezvousStore | None:
        """The network's store."""
        ranks, replicas = self.ranks, self.replicas
        if ranks * replicas == 1:
            return None
        names = [
            f"rank {rank}" + (f" of replica {replica}" if replicas > 1 else "")
            for replica in range(replicas)
            for rank in range(ranks)
        ]
        return RendezvousStore(self._network.store, self.global_rank, tuple(names))

    def open(self, timeout: float) -> None:  # noqa: ARG002 - a deadlock is seen at once
        """Go over to the network that all use after a failure."""
        self._network, self._group, self.usable = self._network.successor(), None, True

    def abandon(self) -> None:
        """Give the network up."""
        if self.usable:
            self._network.give_up(self.global_rank)
        self.generation, self.usable = self.generation + 1, False

    def close(self) -> None:
        """Nothing was given."""

    def finish(self, failure: BaseException | None = None) -> None:
        """Declare that the thread has ended, and with which error if not well."""
        self._network.finish(self.global_rank, failure)

    @property
    def _pipeline(self) -> tuple[int, ...]:
        return tuple(self._global_rank_of(rank) for rank in range(self.ranks))

    @property
    def _peers(self) -> tuple[int, ...]:
        """This rank in all replicas."""
        return tuple(range(self.rank, self.replicas * self.ranks, self.ranks))

    def _global_rank_of(self, rank: int) -> int:
        return self.replica * self.ranks + rank

    def _meet(self, name: str, members: tuple[int, ...], contribution: Any) -> list[Any]:
        operation = Operation("meeting", self.global_rank, members, name, contribution=contribution)
        self._network.post(self.global_rank, [operation])
        self._network.wait(operation)
        return operation.contributions

    def _post(self, operation: Operation) -> Operation:
        if self._group is None:
            self._network.post(self.global_rank, [operation])
        else:
            self._group.append(operation)
        return operation


def run_threads(
    ranks: int,
    function: Callable[[InMemoryTransport], Result],
    *,
    replicas: int = 1,
    timeout: float = 60.0,
    queue: Queues = "stage",
    link: Link | None = None,
) -> list[Result]:
    """Run `function(endpoint)` in a thread for each rank, and return what each returned.

    So a pipeline runs in one process, such as a notebook: each rank makes its evaluator with
    `transport=endpoint`, and the results are those of separate processes::

        def rank(endpoint):
            evaluator = Evaluator(layers, loss_fn=loss_fn, transport=endpoint)
            return evaluator.evaluate(batches, return_logits=True)

        loss, logits = run_threads(3, rank)[-1]

    Args:
        ranks: R, the ranks of a replica.
        function: What a rank does with its end of the network.
        replicas: Data-parallel copies of the pipeline.
        timeout: Seconds for each thread to end.
        queue: Whether the transfers of a rank end in their order (`"stage"`), or only those of a
            channel (`"channel"`), which placements need that lead around in a circle.
        link: How long messages take; default: no time.

    Returns:
        What each returned, by global rank: the ranks of the first replica, then those of the next.

    Raises:
        BaseException: the first error that any of the threads raised.
        TimeoutError: the threads did not end within `timeout` seconds.
    """
    network = InMemoryNetwork(ranks, replicas, queue=queue, link=link)
    endpoints = [network.endpoint(p, r) for r in range(replicas) for p in range(ranks)]
    return run_ends(endpoints, function, timeout)


def run_ends(
    endpoints: Sequence[End], function: Callable[[End], Result], timeout: float
) -> list[Result]:
    """`run_threads`, with all ends of a network, by global rank."""
    results: dict[int, Result] = {}
    errors: list[BaseException] = []

    def body(endpoint: End) -> None:
        try:
            results[endpoint.global_rank] = function(endpoint)
        except BaseException as error:  # reported by the caller's thread
            errors.append(error)
            endpoint.finish(error)
        else:
            endpoint.finish()

    threads = [threading.Thread(target=body, args=(end,), daemon=True) for end in endpoints]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout)
    if errors:
        raise errors[0]
    if len(results) < len(threads):
        raise TimeoutError(f"{len(threads) - len(results)} ranks still run after {timeout} s")
    return [results[rank] for rank in range(len(threads))]
