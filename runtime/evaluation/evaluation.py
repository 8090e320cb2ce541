"""Evaluations on one stage: the runs of the pipeline, and what is agreed on before each."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import schedcc
from runtime.data.fingerprint import Digests
from runtime.data.micro_batches import DataError, EmptyDataError, Prefetcher, Reading
from runtime.data.samples import SampleWeights, require_weight
from runtime.data.stream import FETCHING, Stream, Window, window_of
from runtime.device import OwnRandomState
from runtime.evaluation.request import Request, part_of
from runtime.execution.buffers import BufferPool
from runtime.execution.interpreter import Forward, Work
from runtime.execution.listeners import Listener
from runtime.execution.transfers import Transfers
from runtime.failure.guard import Guard, GuardedRun
from runtime.modules.found_modules import modules_in
from runtime.modules.modes import evaluating
from runtime.modules.stage import LastStage, WeightFunction
from runtime.modules.weight_agreement import StageWeights
from runtime.outputs.eval_result import EvalResult, eval_result
from runtime.outputs.metrics import StatefulMetrics
from runtime.outputs.nonfinite import FiniteCheck, require_finite
from runtime.outputs.results import Results
from runtime.outputs.values import Layout, LossFunction, Measure
from runtime.planning.handshake import Agreement, Announcement, agree
from runtime.planning.plan_cache import PlanCache
from runtime.planning.variant import FormChoice, Overlap
from runtime.recording.recorder import Recorder
from runtime.tensors.ownership import Owner
from runtime.transport import Transport

CHUNK = 256
"""Micro-batches between two drains of the pipe when a whole data set is evaluated."""


@dataclass(frozen=True)
class EvaluatedStage:
    """What is evaluated on one stage, and what is computed from what comes out of it."""

    module: nn.Sequential
    boundaries: tuple[int, ...]
    """The first layer of each stage, and the number of layers."""
    loss_fn: LossFunction | None
    metric_fns: Mapping[str, LossFunction]
    metrics: StatefulMetrics
    weight_fn: WeightFunction | None
    """`None`: by samples, where these are certain."""
    keyword_inputs: bool
    weights: StageWeights

    def evaluated(self, request: Request, *, last: bool) -> list[nn.Module]:
        """What has to be in evaluation mode: the layers, and what their outputs are given to."""
        given = (self.loss_fn, self.metric_fns, self.metrics, self.weight_fn, request.logits_fn)
        return [self.module, *(modules_in(*given) if last else ())]

    @property
    def computes_something(self) -> bool:
        """Whether there is a loss or a metric."""
        return self.loss_fn is not None or bool(self.metric_fns) or bool(self.metrics)


@dataclass(frozen=True)
class Conduct:
    """How evaluations are carried out."""

    overlap: Overlap
    check_data: bool
    check_finite: bool
    dynamic_shapes: bool
    """Whether every activation brings its shape along."""


class StageEvaluations:
    """Carries evaluations out on one stage, and remembers what stages have agreed on."""

    def __init__(
        self,
        transport: Transport,
        guard: Guard,
        stage: EvaluatedStage,
        conduct: Conduct,
        *,
        listeners: Sequence[Listener],
        recorder: Recorder | None,
    ) -> None:
        """Evaluate `stage` over `transport`.

        Args:
            transport: Connection to the other stages.
            guard: Of the transport.
            stage: What is evaluated.
            conduct: How.
            listeners: Told about every instruction.
            recorder: Told before them, so that its start is on file whatever another one does.
        """
        self._transport, self._guard = transport, guard
        self._stage, self._conduct, self._recorder = stage, conduct, recorder
        self._listeners = (*([recorder] if recorder else []), *listeners)
        self._first = transport.stage_id == 0
        self._last = transport.stage_id == transport.stages - 1
        self._layout: Layout | None = None
        self._buffers = BufferPool(transport.receive_memory, transport.release_memory)
        self._form = FormChoice(conduct.overlap, transport)
        self._generation: int | None = None
        self._plans = self._no_plans()

    def evaluate(
        self, data: Iterable[Any] | None, request: Request, asked: int | None
    ) -> EvalResult:
        """Evaluate what `data` gives, in as many runs of the pipeline as it takes.

        Args:
            data: Micro-batches of this stage; `None` if it reads none.
            request: What is wanted, the same on every stage.
            asked: The number of micro-batches; `None`: all that there are.

        Raises:
            DataError, AgreementError, RemoteError, ValueError: as of `Evaluator.eval_batch`.
        """
        outcome = request.outcome(
            replicas=self._transport.replicas, compute_metrics=bool(self._stage.metrics)
        )
        recorded = self._recorder.evaluation() if self._recorder else nullcontext()
        weights, modules = self._stage.weights, self._stage.evaluated(request, last=self._last)
        with ExitStack() as entered:
            run = entered.enter_context(self._guard.run())
            for context in (recorded, weights.evaluation(), torch.no_grad()):
                entered.enter_context(context)
            self._begin(run)
            evaluation = self._prepared(data, request, outcome, asked)
            agreement = self._agree(evaluation, run, weights.token)
            run.phase("the comparison of weights")
            weights.settle(agreement.weights)
            entered.enter_context(evaluating(*modules))
            if agreement.everywhere == 0:
                raise EmptyDataError("the data holds no micro-batch, needed at least one")
            while not self._run(evaluation, agreement, run):
                agreement = self._agree(evaluation, run)
            run.drain()
            evaluation.results.logits.finish()
        self._layout = evaluation.results.losses.agreed
        return eval_result(evaluation.micro_batches, evaluation.results)

    def close(self) -> None:
        """Let go of plans and memory."""
        self._plans.close()
        self._buffers.clear()
        self._buffers.memory.clear()

    def _begin(self, run: GuardedRun) -> None:
        """After a failure, agree on everything anew: some stages may know more than others."""
        # Modules may have been compiled since.
        self._owner = Owner(self._stage.module, self._buffers.memory.ours)
        if self._generation not in (None, run.generation):
            self._plans.close()
            self._plans = self._no_plans()
            self._form = FormChoice(self._conduct.overlap, self._transport)
            self._layout = None
        self._generation = run.generation

    def _no_plans(self) -> PlanCache:
        return PlanCache(self._transport, self._stage.boundaries, self._buffers)

    def _prepared(
        self,
        data: Iterable[Any] | None,
        request: Request,
        outcome: schedcc.Outcome,
        asked: int | None,
    ) -> "_Evaluation":
        if request.compute_loss and self._last and not self._stage.computes_something:
            raise DataError(
                "compute_loss is True, but the evaluator has no loss_fn and no metrics: needed "
                "one of them, or compute_loss=False"
            )
        if outcome.compute_metrics and self._last:
            self._stage.metrics.reset()
        results = Results(
            self._transport.device,
            wish=request.wish,
            metrics=self._stage.metrics,
            layout=self._layout,
        )
        prefetcher = self._prefetcher(data, request, asked)
        return _Evaluation(request, outcome, asked, prefetcher, results)

    def _prefetcher(
        self, data: Iterable[Any] | None, request: Request, asked: int | None
    ) -> Prefetcher | None:
        """What fetches this stage's micro-batches, if it reads any."""
        labels = self._last and request.needs_labels
        # A last stage that needs no labels now still goes on in step with the first.
        if not (self._first or labels or (self._last and data is not None)):
            return None
        reading = Reading(
            inputs=self._first,
            labels=labels,
            fingerprints=self._conduct.check_data and self._transport.stages > 1,
            keyword_inputs=self._stage.keyword_inputs,
        )
        return Prefetcher(
            data,
            reading,
            self._transport.device,
            stage_id=self._transport.stage_id,
            most=asked,
            take=self._buffers.small.take,
            around=OwnRandomState(self._transport.device) if asked is None else nullcontext,
        )

    def _agree(self, evaluation: "_Evaluation", run: GuardedRun, weights: Any = None) -> Agreement:
        """Fetch the first micro-batches of a run, and make sure that all stages fit together.

        Args:
            evaluation: What is under way.
            run: Told what this stage is at.
            weights: What it says of its weights.
        """
        prefetcher = evaluation.prefetcher
        found, ended = None, True
        digests: tuple[Digests, ...] = ()
        window: Window | None = None
        if prefetcher is not None:
            if prefetcher.is_empty:
                run.phase(FETCHING, waits_for="", patient=True)
                prefetcher.fetch()
            most = CHUNK if evaluation.asked is None else evaluation.asked
            mine = window_of(prefetcher, 0, most)
            found, ended = len(mine.notes), mine.ended
            window = mine if self._first else None
            if self._conduct.check_data and self._transport.stages > 1:
                digests = tuple(note.digests for note in mine.notes)
        run.phase("the agreement before the first transfer")
        announcement = Announcement(
            evaluation.outcome,
            evaluation.asked,
            found=found,
            ended=ended,
            window=window,
            digests=digests,
            check_finite=self._conduct.check_finite,
            weights=weights,
            before=evaluation.micro_batches,
        )
        return agree(self._transport, announcement)

    def _run(self, evaluation: "_Evaluation", agreement: Agreement, run: GuardedRun) -> bool:
        """Evaluate the micro-batches that come next; whether these were the last ones."""
        window, run.before = agreement.window, evaluation.micro_batches
        final = agreement.final or evaluation.asked is not None
        run.phase("the connection of the channels")
        self._plans.connect()
        if not final and window.ended and not window.notes:
            return False  # other replicas have more data, and meet this one in the last run
        planned = len(window.notes) if window.ended else evaluation.asked or CHUNK
        outcome = evaluation.outcome if final else part_of(evaluation.outcome)
        kind = window.notes[0].kind if window.notes else ""
        overlap = self._form.overlapped(kind)
        recorder = self._recorder
        run.phase("the comparison of plans")
        interpreter = self._plans.interpreter(planned, outcome, overlap=overlap)
        stream = Stream(
            self._transport,
            window,
            planned,
            evaluation.prefetcher,
            run,
            take=self._buffers.small.take,
            before=evaluation.micro_batches,
            exact=evaluation.asked is not None,
            ended=recorder.data_ended if recorder else lambda _: None,
        )
        transfers = Transfers(
            self._transport,
            self._buffers,
            stream,
            dynamic_shapes=self._conduct.dynamic_shapes,
        )
        stream.before_window = transfers.receive_headers
        results, finite = evaluation.results, None
        if final:  # a run that is not may find fewer micro-batches, and tells no losses
            results.expect(planned)
        if self._conduct.check_finite:
            finite = FiniteCheck(planned, self._transport.device)
        work = Work(
            forward=self._forward(evaluation, stream, transfers, finite),
            stream=stream,
            transfers=transfers,
            results=results,
            own=self._owner.own,
            listeners=(run, *self._listeners),
        )
        recorded = recorder.run(interpreter.plan, transfers) if recorder else nullcontext()
        try:
            with self._form.measuring(kind, overlap, max(1, planned)), recorded:
                interpreter.run(work)
                run.phase("the end of the data")
                stream.finish()
        finally:
            self._buffers.clear()
        if not final:
            results.expect(stream.count)
        evaluation.micro_batches += stream.count
        if finite is not None:
            run.drain()
            run.phase("the comparison of losses")
            everyone = self._transport.gather_objects(finite.notes(stream.count))
            require_finite(everyone, self._stage.boundaries, run.before)
        return final

    def _forward(
        self,
        evaluation: "_Evaluation",
        stream: Stream,
        transfers: Transfers,
        finite: FiniteCheck | None,
    ) -> Forward:
        module: Callable[[Any], Any] = self._stage.module
        request = evaluation.request

        def passed_on(micro_batch: int, inputs: Any, _label: Any) -> Any:
            output = transfers.forward(micro_batch, self._stage.module, inputs)
            if finite is not None:
                finite.look(output)
            return output

        forward: Forward = passed_on
        if self._last:
            if finite is not None:
                module = finite.watching_layers(module)
            computes, loss_fn = request.compute_loss, self._stage.loss_fn
            if finite is not None and loss_fn is not None:
                loss_fn = finite.watching_loss(loss_fn)
            forward = LastStage(
                module,
                evaluation.results,
                self._weigh(evaluation, stream),
                measure=Measure(loss_fn, self._stage.metric_fns) if computes else None,
                metrics=self._stage.metrics if computes and self._stage.metrics else None,
                logits_fn=request.logits_fn,
                weighed=(lambda _: None) if finite is None else finite.weighed,
            )
        return forward if finite is None else finite.watching(forward, inputs=self._first)

    def _weigh(
        self, evaluation: "_Evaluation", stream: Stream
    ) -> Callable[[int, Any], "float | torch.Tensor"]:
        weight_fn, weights = self._stage.weight_fn, evaluation.weights
        if weight_fn is not None:
            function = weight_fn
            return lambda _, label: require_weight(function(label))

        def weigh(micro_batch: int, _: Any) -> float:
            inputs = stream.note(micro_batch)
            labels = stream.label_note(micro_batch)
            look = f"{inputs.look} {labels.label_look}"
            weight = weights.weight(inputs.samples, labels.label_samples, look)
            evaluation.results.losses.uncertain = weights.uncertain
            return weight

        return weigh


@dataclass
class _Evaluation:
    """An evaluation that is under way, on one stage."""

    request: Request
    outcome: schedcc.Outcome
    """What its last run delivers."""
    asked: int | None
    """The number of micro-batches that the caller asked for; `None`: all that there are."""
    prefetcher: Prefetcher | None
    results: Results
    micro_batches: int = 0
    """Those that have been evaluated."""

    def __post_init__(self) -> None:
        averages = self.request.compute_loss and self.request.reduce_output == "avg"
        self.weights = SampleWeights(needed=averages)
