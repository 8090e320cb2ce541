"""The evaluator: a model's layers over the stages of a pipeline, evaluated micro-batch by batch."""

import traceback
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch.distributed as dist
from torch import nn

import schedcc
from runtime.activation import Signature, signature_of
from runtime.agreement import Agreement, AgreementError, Announcement, RemoteError, agree
from runtime.buffers import BufferPool
from runtime.eval_result import EvalResult, combined
from runtime.form import Overlap, Trial
from runtime.interpreter import Forward, Interpreter, Work
from runtime.listeners import Listener
from runtime.micro_batches import CopiedInputs, DataError, DrawnSource, Pair, draw
from runtime.partition import Partition, divide
from runtime.plan_cache import PlanCache
from runtime.recorder import Recorder
from runtime.results import LogitsCallback, Results
from runtime.shapes import ShapeCache
from runtime.stage import LossFunction, WeightFunction, WithLoss, evaluating, samples
from runtime.transport import (
    Channels,
    InMemoryNetwork,
    TorchTransport,
    Transport,
)
from schedcc.errors import require_count

CHUNK = 256
"""Micro-batches between two drains of the pipe when a whole data set is evaluated."""


class Evaluator:
    """Evaluates a model whose layers are spread over the stages of a pipeline.

    Every stage is a process (or a thread, with the in-memory transport) that makes an evaluator of
    the same layers and calls the same methods. Parameters that are named as in DeepSpeed's
    `PipelineEngine.eval_batch` mean what they mean there.
    """

    def __init__(
        self,
        layers: nn.Sequential | Sequence[nn.Module],
        *,
        loss_fn: LossFunction | None = None,
        stages: int | None = None,
        partition: Partition = "parameters",
        micro_batches: int | None = None,
        overlap: Overlap = False,
        channels: Channels | None = None,
        weight_fn: WeightFunction = samples,
        transport: Transport | None = None,
        listeners: Sequence[Listener] = (),
        record: Path | None = None,
    ) -> None:
        """Take this stage's layers, and move them to its device.

        Args:
            layers: All layers of the model, in order. Each takes the output of the one before it;
                the first takes a micro-batch's inputs.
            loss_fn: `(output, label) -> loss`, the mean over the micro-batch as a scalar tensor.
            stages: S; default: the number of processes.
            partition: How layers are divided: so that the largest number of parameters on a stage
                is smallest, into equal numbers of layers, or at the given boundaries
                (`[0, 3, 5]`: layers 0-2 and 3-4).
            micro_batches: M, unless a call says otherwise.
            overlap: Whether transfers cross the forwards, see `schedcc.passes`; the results are
                the same. `"auto"`: whichever a short measurement finds to be faster.
            channels: Without a `transport`: whether all channels share one process group, which
                is the default, or each has its own; see `TorchTransport`.
            weight_fn: `label -> weight` of a micro-batch in the average; default: its samples.
            transport: Connection to the other stages; default: torch.distributed's default group
                if it is initialised, else none, for a single stage.
            listeners: Told about every instruction.
            record: Directory where each stage writes what it executes, see `runtime.recorder`.

        Raises:
            RecordingError: `record` already holds a recording, or cannot be written.
            PartitionError: the layers cannot be divided so.
            AgreementError: `stages` is not the number of processes.
            ValueError: `overlap` is no choice, or `channels` are named beside a transport.
            TransportError: NCCL was not initialised as it has to be.
        """
        if transport is not None and channels is not None:
            raise ValueError(f"channels is {channels!r}, but the transport has channels already")
        self._transport = transport or _default_transport(stages, channels or "shared")
        self.stages, self.stage_id = self._transport.stages, self._transport.stage_id
        if stages not in (None, self.stages):
            raise AgreementError(f"stages is {stages}, but {self.stages} processes are connected")
        self.boundaries = divide(list(layers), self.stages, partition)
        first, stop = self.boundaries[self.stage_id], self.boundaries[self.stage_id + 1]
        self.module = nn.Sequential(*list(layers)[first:stop]).to(self._transport.device)
        """This stage's layers; nothing keeps the others alive."""

        self._loss_fn, self._weight_fn = loss_fn, weight_fn
        self._micro_batches = micro_batches
        self._recorder = None if record is None else Recorder(record, self._transport)
        # First, so that its start is on file whatever another listener does.
        self._listeners = (*([self._recorder] if self._recorder else []), *listeners)
        self._buffers = BufferPool(self._transport.device)
        self._shapes = ShapeCache(self._transport)
        self._plans = PlanCache(self._transport, self.boundaries, self._buffers, overlap=overlap)
        self._broken: str | None = None

    @property
    def is_first(self) -> bool:
        """Whether this stage reads inputs."""
        return self.stage_id == 0

    @property
    def is_last(self) -> bool:
        """Whether this stage reads labels and has the logits."""
        return self.stage_id == self.stages - 1

    def eval_batch(
        self,
        data_iter: Iterable[Any] | None,
        return_logits: bool = False,
        compute_loss: bool = True,
        reduce_output: Literal["avg"] | None = "avg",
        bcast_loss: bool = True,
        num_micro_batches: int | None = None,
    ) -> EvalResult:
        """Evaluate M micro-batches.

        Args:
            data_iter: Gives pairs `(inputs, labels)`. Needed on the first stage, which takes the
                inputs, and on the last, which takes the labels; the others may pass `None`.
            return_logits: Whether the last stage returns the logits of all micro-batches.
            compute_loss: Whether losses are computed.
            reduce_output: `"avg"`: average the losses, weighted by `weight_fn`; `None`: do not.
            bcast_loss: Whether every stage gets the losses, or only the last.
            num_micro_batches: M; default: the evaluator's.

        Returns:
            The result, as far as this stage is to know it.

        Raises:
            ScheduleError: M is no integer of at least 1.
            DataError: this stage's data is not made of pairs, or missing.
            AgreementError: the stages do not agree, or a stage's data ended early.
            RemoteError: another stage failed before the first transfer.
        """
        micro_batches = self._micro_batches if num_micro_batches is None else num_micro_batches
        if micro_batches is None:
            raise DataError("num_micro_batches is None, and the evaluator has no micro_batches")
        require_count("num_micro_batches", micro_batches)
        outcome = schedcc.Outcome(compute_loss, reduce_output, bcast_loss, return_logits)
        return self._evaluate(data_iter, outcome, micro_batches, None)

    def evaluate(
        self,
        loader: Iterable[Any] | None,
        *,
        return_logits: bool = False,
        compute_loss: bool = True,
        on_logits: LogitsCallback | None = None,
    ) -> EvalResult:
        """Evaluate a whole data set, whose length need not be known.

        Args:
            loader: Pairs `(inputs, labels)`, on the first and the last stage.
            return_logits: Whether the last stage returns the logits of all micro-batches.
            compute_loss: Whether losses are computed.
            on_logits: On the last stage, called with the number of each micro-batch and its
                logits as they come; they are valid until it returns.

        Returns:
            The result over all micro-batches; the loss is known to every stage.

        Raises:
            DataError, AgreementError, RemoteError: as in `eval_batch`.
        """
        outcome = schedcc.Outcome(compute_loss=compute_loss, return_logits=return_logits)
        data = None if loader is None else iter(loader)
        parts: list[EvalResult] = []
        while not parts or parts[-1].micro_batches == CHUNK:
            done = CHUNK * len(parts)
            parts.append(self._evaluate(data, outcome, None, _numbered_from(done, on_logits)))
        if parts[0].micro_batches == 0:
            raise DataError("the data holds no micro-batch, needed at least one")
        return combined(parts)

    def _evaluate(
        self,
        data: Iterable[Any] | None,
        outcome: schedcc.Outcome,
        asked: int | None,
        on_logits: LogitsCallback | None,
    ) -> EvalResult:
        if self._broken is not None:
            raise RuntimeError(
                f"this evaluator failed before ({self._broken}), and messages of that run may "
                "still be under way: make a new process group and evaluator"
            )
        recorded = self._recorder.evaluation() if self._recorder else nullcontext()
        with recorded, evaluating(self.module):
            drawn, agreement = self._agree(data, outcome, asked)
            results = Results(
                agreement.micro_batches,
                self._transport.device,
                keep_logits=outcome.return_logits,
                on_logits=on_logits,
            )
            if agreement.micro_batches > 0:
                self._run(drawn, agreement, outcome, results)
        return EvalResult.of_run(agreement.micro_batches, results)

    def _agree(
        self, data: Iterable[Any] | None, outcome: schedcc.Outcome, asked: int | None
    ) -> tuple[list[Pair], Agreement]:
        """Draw this stage's micro-batches, and make sure that all stages fit together."""
        needed = self.is_first or (self.is_last and outcome.compute_loss)
        drawn: list[Pair] = []
        inputs: tuple[Signature, ...] = ()
        error: Exception | None = None
        failure: str | None = None
        try:
            if outcome.compute_loss and self.is_last and self._loss_fn is None:
                raise DataError("compute_loss is True, but the evaluator has no loss_fn")
            if needed:
                drawn = draw(data, CHUNK if asked is None else asked, stage_id=self.stage_id)
            if self.is_first:
                inputs = tuple(signature_of(pair[0]) for pair in drawn)
        except Exception as raised:
            error, failure = raised, traceback.format_exc()
        found = len(drawn) if needed else None
        mine = Announcement(outcome, asked, found, inputs, failure)
        try:
            return drawn, agree(self._transport, mine)
        except RemoteError:
            if error is not None:
                raise error from None  # this stage is the origin
            raise

    def _run(
        self,
        drawn: list[Pair],
        agreement: Agreement,
        outcome: schedcc.Outcome,
        results: Results,
    ) -> None:
        self._plans.connect()
        source = DrawnSource(
            drawn,
            self._transport.device,
            inputs=self.is_first,
            labels=self.is_last and outcome.compute_loss,
        )
        self._shapes.learn(agreement.inputs, source.copy_of_input, self.module)
        shapes = self._shapes.shapes(agreement.inputs)
        layers: Forward = lambda _micro_batch, inputs, _label: self.module(inputs)  # noqa: E731
        forward = layers
        if self.is_last and outcome.compute_loss:
            assert self._loss_fn is not None
            forward = WithLoss(self.module, results, self._loss_fn, self._weight_fn)

        def attempt(interpreter: Interpreter) -> None:
            copies = CopiedInputs(source, first=self.is_first)
            dropped = Results(agreement.micro_batches, self._transport.device)
            interpreter.run(Work(layers, copies, shapes, dropped))

        try:
            trial = Trial(agreement.inputs, attempt)
            interpreter = self._plans.interpreter(agreement.micro_batches, outcome, trial)
            work = Work(forward, source, shapes, results, self._listeners)
            recorder = self._recorder
            with recorder.run(interpreter.plan, shapes) if recorder else nullcontext():
                interpreter.run(work)
        except BaseException as error:
            self._broken = repr(error)
            raise
        finally:
            self._buffers.clear()


def _default_transport(stages: int | None, channels: Channels) -> Transport:
    if dist.is_available() and dist.is_initialized():
        return TorchTransport(channels=channels)
    if stages not in (None, 1):
        raise AgreementError(
            f"stages is {stages}, but torch.distributed is not initialised: start {stages} "
            "processes (torchrun) and call init_process_group first"
        )
    return InMemoryNetwork(1).endpoint(0)


def _numbered_from(done: int, on_logits: LogitsCallback | None) -> LogitsCallback | None:
    if on_logits is None:
        return None
    return lambda micro_batch, logits: on_logits(done + micro_batch, logits)
