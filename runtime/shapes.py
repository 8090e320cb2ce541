"""Shapes: every transfer's signature is known on both ends before a run starts.

The first stage announces the input signature of each micro-batch. A signature that is seen for the
first time is propagated once, in a *rehearsal*: its first micro-batch goes down the pipe alone,
each activation with its signature ahead of it. From then on the signature is known everywhere,
and a run needs no message for it.

A rehearsal runs the real layers on a copy of the real micro-batch, so that it fails only where the
run would; random numbers are put back, so that the run draws those it would have drawn. It is the
warm-up as well.
"""

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from runtime.activation import Signature, signature_of
from runtime.agreement import RemoteError
from runtime.allocator import keep_freed_activations
from runtime.buffers import Buffer
from runtime.device import random_state_kept
from runtime.messages import receive_object, send_object
from runtime.transport.protocol import Transport


@dataclass(frozen=True)
class _Failure:
    """Goes down the pipe in place of a signature."""

    report: str


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

    def learn(
        self,
        announced: Sequence[Signature],
        load: Callable[[int], Any],
        run: Callable[[Any], Any],
    ) -> None:
        """Rehearse the signatures among `announced` that are new; every stage takes part.

        Args:
            announced: The signature of each micro-batch's input, the same on every stage.
            load: Gives the first stage the input of a micro-batch.
            run: The layers of this stage.

        Raises:
            RemoteError: a stage failed, perhaps this one. Nobody has learnt anything then, so
                that all stages still know the same signatures.
        """
        learnt: dict[Signature, Rehearsed] = {}
        failure: _Failure | None = None
        for micro_batch, signature in enumerate(announced):
            if signature in self._known or signature in learnt:
                continue
            outcome = self._rehearse(micro_batch, load, run, failure)
            if isinstance(outcome, _Failure):
                failure = outcome
            learnt[signature] = outcome if isinstance(outcome, Rehearsed) else Rehearsed(None, None)
        if not learnt:
            return
        for report in self._transport.gather_objects(failure and failure.report):
            if report is not None:
                raise RemoteError(report)
        self._known |= learnt
        around = [s for known in learnt.values() for s in (known.received, known.sent) if s]
        for signature in around:
            keep_freed_activations(signature.nbytes, self._transport.device)

    def shapes(self, announced: Sequence[Signature]) -> "RunShapes":
        """The shapes of a run over the announced micro-batches."""
        return RunShapes([self._known[signature] for signature in announced])

    def _rehearse(
        self,
        micro_batch: int,
        load: Callable[[int], Any],
        run: Callable[[Any], Any],
        failure: _Failure | None,
    ) -> Rehearsed | _Failure:
        here, stages = self._transport.stage_id, self._transport.stages
        received: Signature | _Failure | None = None
        value: Any = None
        if here > 0:
            received, value = self._receive(here - 1, with_tensors=here < stages - 1)
        if isinstance(received, _Failure):
            failure = failure or received
        if here == stages - 1:
            assert not isinstance(received, _Failure) or failure is not None
            return failure or Rehearsed(_signature(received), None)
        sent: Signature | None = None
        if failure is None:
            try:
                with random_state_kept(self._transport.device):
                    value = run(load(micro_batch) if here == 0 else value)
                sent = signature_of(value)
            except Exception:
                failure = _Failure(f"stage {here} failed:\n{traceback.format_exc()}")
        self._send(failure or sent, value, here + 1, with_tensors=here + 1 < stages - 1)
        return failure or Rehearsed(_signature(received), sent)

    def _receive(self, peer: int, *, with_tensors: bool) -> tuple[Signature | _Failure, Any]:
        header: Signature | _Failure = receive_object(self._transport, peer)
        if isinstance(header, _Failure) or not with_tensors:
            return header, None
        memory = Buffer(self._transport.device).receive_memory(header)
        self._transport.wait(self._transport.post_receive(memory, peer))
        return header, header.over(memory)

    def _send(
        self, header: Signature | _Failure | None, value: Any, peer: int, *, with_tensors: bool
    ) -> None:
        send_object(self._transport, header, peer)
        if with_tensors and isinstance(header, Signature):
            self._transport.wait(self._transport.post_send(header.memory_of(value), peer))


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


def _signature(header: Signature | _Failure | None) -> Signature | None:
    assert not isinstance(header, _Failure)
    return header
