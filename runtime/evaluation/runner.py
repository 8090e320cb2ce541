"""The runner: evaluations on one stage, as runs of the pipeline with a handshake before each."""

from collections import ChainMap, defaultdict
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch

import schedcc
from runtime.data.fingerprint import Digests
from runtime.data.items import DataError, EmptyDataError
from runtime.data.route import Route
from runtime.data.samples import SampleWeights
from runtime.data.stream import FETCHING, Stream, Window, window_of
from runtime.evaluation.evaluation import Evaluation
from runtime.evaluation.forwards import forwards_of
from runtime.evaluation.outcome import outcome_of, part_of
from runtime.evaluation.reading import prefetcher_of
from runtime.evaluation.setup import Setup
from runtime.execution.buffers import BufferPool
from runtime.execution.headers import Rooms
from runtime.execution.interpreter import Work
from runtime.execution.transfers import Transfers
from runtime.failure.errors import AgreementError
from runtime.failure.guard import Guard, GuardedRun
from runtime.modules.modes import evaluating
from runtime.outputs.logits import Logits
from runtime.outputs.losses import Losses
from runtime.outputs.nonfinite import FiniteCheck, require_finite
from runtime.outputs.options import EvalOptions
from runtime.outputs.results import EvalResult, Results, eval_result
from runtime.outputs.values import Layout
from runtime.planning.autotuning import Autotuner
from runtime.planning.handshake import Handshake, Proposal, handshake
from runtime.planning.plan_cache import PlanCache
from runtime.tensors.ownership import Owner
from runtime.transport import Transport


class Runner:
    """Carries evaluations out on one rank, and remembers what ranks have agreed on."""

    def __init__(self, transport: Transport, guard: Guard, setup: Setup) -> None:
        """Evaluate what `setup` says over `transport`, watched by `guard`."""
        self._transport, self._guard, self._setup = transport, guard, setup
        self._route = Route.of(setup.division.placement, transport.rank)
        self._buffers = BufferPool(transport.receive_memory, transport.release_memory)
        self._generation: int | None = None
        self._layout: Layout | None = None
        self._forget()

    def evaluate(
        self, data: Iterable[Any] | None, options: EvalOptions, asked: int | None
    ) -> EvalResult:
        """Evaluate what `data` gives, in as many runs of the pipeline as it takes.

        Args:
            data: Micro-batches of this stage; `None` if it reads none.
            options: What is wanted, the same on every stage.
            asked: The number of micro-batches; `None`: all that there are.

        Raises:
            DataError, AgreementError, RemoteError, ValueError: as of `Evaluator.eval_batch`.
        """
        setup = self._setup
        outcome = outcome_of(
            options, replicas=self._transport.replicas, compute_metrics=bool(setup.metrics)
        )
        recorded = setup.recorder.evaluation() if setup.recorder else nullcontext()
        with ExitStack() as closing, ExitStack() as entered:
            run = entered.enter_context(self._guard.run())
            for context in (recorded, setup.weights.evaluation(), torch.no_grad()):
                entered.enter_context(context)
            self._begin(run)
            evaluation = self._evaluation(data, options, outcome, asked, run)
            closing.callback(evaluation.close)  # once the others know of a failure
            shaken = self._handshake(evaluation, run, setup.weights.token)
            if asked is not None and (misfit := setup.plans.misfit(asked)) is not None:
                raise AgreementError(misfit)  # all ranks ask for the same, and raise it
            if shaken.everywhere == 0:  # raised before a look at whether another rank has
                raise EmptyDataError("the data holds no micro-batch, needed at least one")
            run.phase("the comparison of weights")
            setup.weights.settle(shaken.weights)
            entered.enter_context(
                evaluating(*setup.evaluated(options, last=self._route.reads_labels))
            )
            while not self._run(evaluation, shaken, run):
                shaken = self._handshake(evaluation, run)
            run.drain()
            evaluation.results.logits.finish()
        self._layout = evaluation.results.losses.agreed
        return eval_result(evaluation.micro_batches, evaluation.results)

    def close(self) -> None:
        """Let go of plans and memory, and end the recording."""
        self._plans.clear()
        self._buffers.clear()
        self._buffers.memory.clear()
        if self._setup.recorder is not None:
            self._setup.recorder.close()

    def _forget(self) -> None:
        """Know nothing that ranks agree on."""
        self._plans = PlanCache(
            self._transport, self._setup.plans, self._setup.division, self._buffers
        )
        self._tuner = Autotuner(self._setup.overlap, self._transport)
        self._layout = None
        self._rooms: Rooms = defaultdict(int)

    def _begin(self, run: GuardedRun) -> None:
        # Modules may have been compiled since.
        self._owner = Owner(self._setup.modules.values(), self._buffers.memory.ours)
        # After a failure some ranks may know more than others.
        if self._generation not in (None, run.generation):
            self._forget()
        self._generation = run.generation

    def _evaluation(
        self,
        data: Iterable[Any] | None,
        options: EvalOptions,
        outcome: schedcc.Outcome,
        asked: int | None,
        run: GuardedRun,
    ) -> Evaluation:
        setup, device = self._setup, self._transport.device
        if options.compute_loss and self._route.reads_labels and not setup.computes_something:
            raise DataError(
                "compute_loss is True, but the evaluator has no loss_fn and no metrics: needed "
                "one of them, or compute_loss=False"
            )
        setup.metrics.begin(fed=outcome.compute_metrics and self._route.reads_labels)
        logits = Logits(options, device, run.settle)
        averages = options.compute_loss and options.reduce_output == "avg"
        return Evaluation(
            options,
            outcome,
            asked,
            prefetcher_of(
                data, options, asked, setup, self._route, self._buffers, device, run.check
            ),
            Results(Losses(device, self._layout), setup.metrics, logits),
            SampleWeights(needed=averages),
        )

    def _handshake(self, evaluation: Evaluation, run: GuardedRun, weights: Any = None) -> Handshake:
        """Fetch the first micro-batches of a run, and make sure that all stages fit together.

        Args:
            evaluation: What is under way.
            run: Told what this stage is at.
            weights: What it says of its weights.
        """
        prefetcher = evaluation.prefetcher
        limit = evaluation.asked or self._setup.plans.micro_batches
        found, ended = None, True
        digests: tuple[Digests, ...] = ()
        window: Window | None = None
        if prefetcher is not None:
            if prefetcher.is_empty:
                run.phase(FETCHING, waits_for="", patient=True)
                prefetcher.fetch(limit if self._setup.plans.fetches_all else 1)
            fetched = window_of(prefetcher, 0, limit)
            found, ended = len(fetched.notes), fetched.ended
            window = fetched if self._route.reads_inputs else None
            if self._setup.compares_data:
                digests = tuple(note.digests for note in fetched.notes)
        run.phase("the handshake before the first transfer")
        return handshake(
            self._transport,
            Proposal(
                evaluation.outcome,
                evaluation.asked,
                found=found,
                ended=ended,
                window=window,
                digests=digests,
                check_finite=self._setup.check_finite,
                endless=self._can_go_on(evaluation),
                weights=weights,
                before=evaluation.micro_batches,
            ),
            self._setup.division,
        )

    def _can_go_on(self, evaluation: Evaluation) -> bool:
        """Whether one run can evaluate all the data, however much there is.

        Logits that travel, notes on what is finite and recordings would grow with the data; and
        variants are measured in runs that end.
        """
        setup, options = self._setup, evaluation.options
        logits_travel = options.logits_in_epilogue and options.logits_to != "last"
        return not (
            evaluation.asked is not None
            or (logits_travel and self._transport.ranks > 1)
            or setup.check_finite
            or setup.recorder is not None
            or self._tuner.is_measuring
            or not setup.plans.is_endless
        )

    def _run(self, evaluation: Evaluation, shaken: Handshake, run: GuardedRun) -> bool:
        """Evaluate the micro-batches that come next; whether these were the last ones."""
        setup, window = self._setup, shaken.window
        run.before = evaluation.micro_batches
        final = shaken.final or evaluation.asked is not None
        run.phase("the connection of the channels")
        self._plans.connect()
        if not final and window.ended and not window.notes:
            return False  # other replicas have more data, and meet this one in the last run
        kind = window.notes[0].kind if window.notes else ""
        overlap, limit = self._tuner.overlap(kind), self._limit(evaluation, shaken)
        run.phase("the comparison of plans")
        outcome = evaluation.outcome if final else part_of(evaluation.outcome)
        interpreter = self._plans.interpreter(limit, outcome, overlap=overlap)
        work, finite = self._work(evaluation, window, limit, interpreter.program.num_buffers, run)
        stream, transfers, recorder = work.stream, work.transfers, setup.recorder
        recorded: AbstractContextManager[None] = nullcontext()
        if recorder is not None:
            assert interpreter.program.plan is not None
            recorded = recorder.run(interpreter.program.plan, transfers)
        try:
            with self._tuner.measuring(kind, overlap, lambda: stream.count), recorded:
                interpreter.run(work)
                run.phase("the end of the data")
                transfers.finish_sends()
                stream.finish()
        finally:
            stream.receive = None  # else the two would hold each other, and the transport
            self._buffers.clear()
        evaluation.micro_batches += stream.count
        if finite:
            self._require_finite(finite, stream.count, run)
        return final

    def _limit(self, evaluation: Evaluation, shaken: Handshake) -> int | None:
        """The micro-batches of the run that comes next; `None`: as many as there are."""
        if shaken.window.ended:
            return len(shaken.window.notes)
        return None if shaken.endless else evaluation.asked or self._setup.plans.micro_batches

    def _work(
        self,
        evaluation: Evaluation,
        window: Window,
        limit: int | None,
        num_buffers: int,
        run: GuardedRun,
    ) -> tuple[Work, dict[int, FiniteCheck]]:
        """What a run is about, and the notes that it takes on what is finite."""
        setup, transport = self._setup, self._transport
        self._buffers.expect(self._route.receiving_stages, num_buffers)
        stream = Stream(
            self._route,
            window,
            limit,
            evaluation.prefetcher,
            run,
            rank=setup.division.name(transport.rank),
            before=evaluation.micro_batches,
            exact=evaluation.asked is not None,
            ended=setup.recorder.data_ended if setup.recorder else lambda _: None,
        )
        transfers = Transfers(
            transport,
            self._buffers,
            stream,
            setup.division.placement,
            num_buffers=num_buffers,
            dynamic_shapes=setup.dynamic_shapes,
            rooms=self._rooms,
        )
        finite: dict[int, FiniteCheck] = {}
        if setup.check_finite:
            assert limit is not None
            finite = {stage: FiniteCheck(limit, transport.device) for stage in setup.modules}
        work = Work(
            forwards=forwards_of(setup, evaluation, stream, transfers, finite, transport.device),
            stream=stream,
            transfers=transfers,
            results=evaluation.results,
            own=self._owner.own,
            listeners=(run, *filter(None, [setup.recorder]), *setup.listeners),
        )
        return work, finite

    def _require_finite(
        self, finite: Mapping[int, FiniteCheck], count: int, run: GuardedRun
    ) -> None:
        """Compare what all stages have noted on the micro-batches of a run."""
        run.drain()
        run.phase("the comparison of losses")
        notes = {stage: check.notes(count) for stage, check in finite.items()}
        gathered = ChainMap(*self._transport.gather_objects(notes))
        by_stage = [gathered[stage] for stage in range(self._setup.division.stages)]
        require_finite(by_stage, self._setup.division.boundaries, run.before)
