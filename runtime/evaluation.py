"""Evaluations on one stage: drawing, agreement, and the runs of the pipeline that they take."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import schedcc
from runtime.activation import Signature, signature_of
from runtime.agreement import Agreement, Announcement, agree
from runtime.buffers import BufferPool
from runtime.device import random_state_kept
from runtime.eval_result import EvalResult, eval_result
from runtime.failure.fingerprint import Digests, fingerprint
from runtime.failure.finite import FiniteCheck, require_finite
from runtime.failure.guard import Guard, Run
from runtime.form import Overlap, Trial
from runtime.found_modules import modules_in
from runtime.interpreter import Forward, Interpreter, Work
from runtime.listeners import Listener
from runtime.metrics import StatefulMetrics
from runtime.micro_batches import CopiedInputs, DataError, DrawnSource, EmptyDataError, Pair, draw
from runtime.modes import evaluating
from runtime.plan_cache import PlanCache
from runtime.recorder import Recorder
from runtime.request import Request, part_of
from runtime.results import Results
from runtime.shapes import ShapeCache
from runtime.stage import LastStage, WeightFunction
from runtime.transport import Transport
from runtime.values import Layout, LossFunction, Measure
from runtime.weights import StageWeights

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
    weight_fn: WeightFunction
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
        self._buffers = BufferPool(transport.receive_memory)
        self._epoch: int | None = None
        self._shapes, self._plans = self._nothing_known()

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
        micro_batches = everywhere = 0
        final = False
        recorded = self._recorder.evaluation() if self._recorder else nullcontext()
        weights, modules = self._stage.weights, self._stage.evaluated(request, last=self._last)
        with ExitStack() as entered:
            run = entered.enter_context(self._guard.run())
            for context in (recorded, weights.evaluation(), torch.no_grad()):
                entered.enter_context(context)
            self._begin(run)
            results = Results(
                self._transport.device,
                wish=request.wish,
                metrics=self._stage.metrics,
                layout=self._layout,
            )
            while not final:
                begins = everywhere == 0
                drawn, agreement = self._agree(data, request, outcome, asked, run, begins=begins)
                if begins:
                    run.phase("the comparison of weights")
                    weights.settle(agreement.weights)
                    entered.enter_context(evaluating(*modules))
                final = agreement.final
                everywhere += agreement.everywhere
                if everywhere == 0:
                    raise EmptyDataError("the data holds no micro-batch, needed at least one")
                wanted = outcome if final else part_of(outcome)
                run.before = micro_batches
                self._run(drawn, agreement, request, wanted, results, run)
                micro_batches += agreement.micro_batches
            run.drain()
            results.logits.finish()
        self._layout = results.losses.agreed
        return eval_result(micro_batches, results)

    def _begin(self, run: Run) -> None:
        """After a failure, agree on everything anew: some stages may know more than others."""
        if self._epoch not in (None, run.epoch):
            self._shapes, self._plans = self._nothing_known()
            self._layout = None
        self._epoch = run.epoch

    def _nothing_known(self) -> tuple[ShapeCache, PlanCache]:
        plans = PlanCache(
            self._transport, self._stage.boundaries, self._buffers, overlap=self._conduct.overlap
        )
        return ShapeCache(self._transport), plans

    def _agree(
        self,
        data: Iterable[Any] | None,
        request: Request,
        outcome: schedcc.Outcome,
        asked: int | None,
        run: Run,
        *,
        begins: bool,
    ) -> tuple[list[Pair], Agreement]:
        """Draw this stage's micro-batches, and make sure that all stages fit together."""
        limit = CHUNK if asked is None else asked
        needed = self._first or (self._last and request.needs_labels)
        # A last stage that needs no labels now still goes on in step with the first.
        draws = needed or (self._last and data is not None)
        drawn: list[Pair] = []
        inputs: tuple[Signature, ...] = ()
        digests: tuple[Digests, ...] = ()
        if request.compute_loss and self._last and not self._stage.computes_something:
            raise DataError(
                "compute_loss is True, but the evaluator has no loss_fn and no metrics: needed "
                "one of them, or compute_loss=False"
            )
        if begins and outcome.compute_metrics and self._last:
            self._stage.metrics.reset()
        if draws:
            run.phase("the drawing of micro-batches", waits_for="")
            drawn = draw(
                data,
                limit,
                stage_id=self._transport.stage_id,
                keyword_inputs=self._stage.keyword_inputs,
            )
        if self._first:
            known: dict[Signature, Signature] = {}  # equal ones travel once
            signatures = (signature_of(pair[0]) for pair in drawn)
            inputs = tuple(known.setdefault(s, s) for s in signatures)
        if self._conduct.check_data and self._transport.stages > 1:
            digests = tuple((fingerprint(inputs), fingerprint(labels)) for inputs, labels in drawn)
        run.phase("the agreement before the first transfer")
        mine = Announcement(
            outcome,
            asked,
            found=len(drawn) if draws else None,
            ended=asked is not None or len(drawn) < limit,
            inputs=inputs,
            digests=digests,
            check_finite=self._conduct.check_finite,
            weights=self._stage.weights.token if begins else None,
        )
        return drawn, agree(self._transport, mine, self._shapes.new)

    def _run(
        self,
        drawn: list[Pair],
        agreement: Agreement,
        request: Request,
        outcome: schedcc.Outcome,
        results: Results,
        run: Run,
    ) -> None:
        run.phase("the connection of the channels")
        self._plans.connect()
        if agreement.micro_batches == 0 and not agreement.final:
            return  # other replicas have more data, and meet this one in the last run
        source = DrawnSource(
            drawn,
            self._transport.device,
            inputs=self._first,
            labels=self._last and request.needs_labels,
        )
        run.phase("the rehearsal of new shapes")
        self._shapes.learn(
            agreement.inputs,
            source.copy_of_input,
            self._stage.module,
            rehearsals=agreement.rehearsals,
        )
        results.expect(agreement.micro_batches)
        shapes = self._shapes.shapes(agreement.inputs)

        def attempt(interpreter: Interpreter) -> None:
            copies = CopiedInputs(source, first=self._first)
            dropped = Results(self._transport.device)
            interpreter.run(Work(self._apply, copies, shapes, dropped, (run,)))

        finite = None
        if self._conduct.check_finite:
            finite = FiniteCheck(agreement.micro_batches, self._transport.device)
        forward = self._forward(request, results, finite)
        run.phase("the comparison of plans")
        try:
            trial = Trial(agreement.inputs, attempt)
            interpreter = self._plans.interpreter(agreement.micro_batches, outcome, trial)
            work = Work(forward, source, shapes, results, (run, *self._listeners))
            recorder = self._recorder
            recorded = recorder.run(interpreter.plan, shapes) if recorder else nullcontext()
            with random_state_kept(self._transport.device), recorded:
                interpreter.run(work)
        finally:
            self._buffers.clear()
        if finite is not None:
            run.drain()
            run.phase("the comparison of losses")
            everyone = self._transport.gather_objects(finite.notes())
            require_finite(everyone, self._stage.boundaries, run.before)

    def _apply(self, _micro_batch: int, inputs: Any, _label: Any) -> Any:
        return self._stage.module(inputs)

    def _forward(self, request: Request, results: Results, finite: FiniteCheck | None) -> Forward:
        forward: Forward = self._apply
        if self._last:
            computes, loss_fn = request.compute_loss, self._stage.loss_fn
            if finite is not None and loss_fn is not None:
                loss_fn = finite.watching_loss(loss_fn)
            forward = LastStage(
                self._stage.module,
                results,
                self._stage.weight_fn,
                measure=Measure(loss_fn, self._stage.metric_fns) if computes else None,
                metrics=self._stage.metrics if computes and self._stage.metrics else None,
                logits_fn=request.logits_fn,
            )
        return forward if finite is None else finite.watching(forward, inputs=self._first)
