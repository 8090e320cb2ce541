"""Shapes: every transfer's signature is known on both ends before a run starts.

The first stage announces the input signature of each micro-batch. A signature that is seen for the
first time is propagated once, in a *rehearsal*: its first micro-batch goes down the pipe alone,
each activation with its signature ahead of it. From then on the signature is known everywhere,
and a run needs no message for it.

A rehearsal runs the real layers on a copy of the real micro-batch, so that it fails only where the
run would; random numbers are put back, so that the run draws those it would have drawn. It is the
warm-up as well.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from runtime.activation import Signature, signature_of
from runtime.allocator import keep_freed_activations
from runtime.buffers import Buffer
from runtime.device import random_state_kept
from runtime.messages import receive_object, send_object
from runtime.transport.protocol import Transport


@dataclass(frozen=True)
class Rehearsed:
    """How one input signature looks around a stage; `None` where nothing is received or sent."""

    received: Signature | None
    sent: Signature | None


class ShapeCache:
    """The signatures around one stage, for each input signature of the pipeline."""

    def __init__(self, transport: Transport) -> None:
        """Start with no signature known."""
        self._transport = transport
        self._known: dict[Signature, Rehearsed] = {}

    def new(self, announced: Sequence[Signature]) -> dict[Signature, int]:
        """The signatures that are not known yet, each with its first micro-batch."""
        found: dict[Signature, int] = {}
        for micro_batch, signature in _distinct(announced):
            if signature not in self._known:
                found.setdefault(signature, micro_batch)
        return found

    def learn(
        self,
        announced: Sequence[Signature],
        load: Callable[[int], Any],
        run: Callable[[Any], Any],
        *,
        rehearsals: int,
    ) -> None:
        """Rehearse the signatures among `announced` that are new; every stage takes part.

        Args:
            announced: The signature of each micro-batch's input, the same on every stage.
            load: Gives the first stage the input of a micro-batch.
            run: The layers of this stage.
            rehearsals: How many there are to be, at least: layers that communicate with those of
                other replicas (FSDP) have to run as often as they.

        Raises:
            Exception: what the layers raise. Nobody has learnt anything then.
        """
        if not rehearsals:
            return
        new = self.new(announced)
        learnt = {s: self._rehearse(micro_batch, load, run) for s, micro_batch in new.items()}
        for _ in range(rehearsals - len(learnt) if announced else 0):
            self._rehearse(0, load, run)
        self._transport.gather_objects(None)  # all stages have come so far
        self._known |= learnt
        around = [s for known in learnt.values() for s in (known.received, known.sent) if s]
        for signature in around:
            keep_freed_activations(signature.nbytes, self._transport.device)

    def shapes(self, announced: Sequence[Signature]) -> "RunShapes":
        """The shapes of a run over the announced micro-batches."""
        known = {id(signature): self._known[signature] for _, signature in _distinct(announced)}
        return RunShapes([known[id(signature)] for signature in announced])

    def _rehearse(
        self, micro_batch: int, load: Callable[[int], Any], run: Callable[[Any], Any]
    ) -> Rehearsed:
        here, last = self._transport.stage_id, self._transport.stages - 1
        received: Signature | None = None
        sent: Signature | None = None
        value: Any = None
        if here > 0:
            received, value = self._receive(here - 1, with_tensors=here < last)
        if here < last:
            with random_state_kept(self._transport.device):
                value = run(load(micro_batch) if here == 0 else value)
            sent = signature_of(value)
            self._send(sent, value, here + 1, with_tensors=here + 1 < last)
        return Rehearsed(received, sent)

    def _receive(self, peer: int, *, with_tensors: bool) -> tuple[Signature, Any]:
        signature: Signature = receive_object(self._transport, peer)
        if not with_tensors:
            return signature, None
        memory = Buffer(self._transport.receive_memory).receive_memory(signature)
        self._transport.wait(self._transport.post_receive(memory, peer))
        return signature, signature.over(memory)

    def _send(self, signature: Signature, value: Any, peer: int, *, with_tensors: bool) -> None:
        send_object(self._transport, signature, peer)
        if with_tensors:
            self._transport.wait(self._transport.post_send(signature.memory_of(value), peer))


def _distinct(announced: Sequence[Signature]) -> Iterable[tuple[int, Signature]]:
    """The first micro-batch of each object: mostly there are few, and they take long to hash."""
    found: dict[int, tuple[int, Signature]] = {}
    for micro_batch, signature in enumerate(announced):
        found.setdefault(id(signature), (micro_batch, signature))
    return found.values()


@dataclass(frozen=True)
class RunShapes:
    """The signatures around a stage, by micro-batch."""

    micro_batches: Sequence[Rehearsed]

    def input(self, micro_batch: int) -> Signature:
        """What the stage receives."""
        received = self.micro_batches[micro_batch].received
        assert received is not None
        return received

    def output(self, micro_batch: int) -> Signature:
        """What the stage sends."""
        sent = self.micro_batches[micro_batch].sent
        assert sent is not None
        return sent
