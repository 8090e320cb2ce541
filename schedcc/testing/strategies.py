"""Hypothesis strategies: sizes, schedules, plans, spoilt plans, and models of the transport."""

from collections.abc import Callable, Sequence
from itertools import product
from typing import NamedTuple, TypeVar, get_args

from hypothesis import example
from hypothesis import strategies as st

from schedcc import SCHEDULES, Outcome, Schedule, ScheduleError, compile_pipeline
from schedcc.testing.mutations import random_mutant
from schedcc.testing.plans import pipeline
from schemas import LogitsTo, PipelinePlan, ReduceOutput, TransportModel
from schemas.transport import Queues

Test = TypeVar("Test", bound=Callable[..., None])

CORNERS = ((1, 1), (4, 1), (1, 4), (2, 5), (5, 2))
"""Sizes `(M, S)` that every test of a shape must see: S = 1, M = 1, M < S, M > S."""


TRANSPORT_MODELS = tuple(
    TransportModel(queue=queue, buffered_sends=buffered)
    for queue, buffered in product(get_args(Queues), (0, 1, 2))
)
"""Models of the transport, the strictest first."""


class Shape(NamedTuple):
    """A schedule, and the sizes for which it exists."""

    schedule: Schedule
    micro_batches: int
    """M."""
    stages: int
    """S."""
    ranks: int
    """R."""

    def compile(self, *, overlap: bool = False, outcome: Outcome | None = None) -> PipelinePlan:
        """The plan."""
        return compile_pipeline(
            self.micro_batches,
            self.stages,
            schedule=self.schedule,
            ranks=self.ranks,
            overlap=overlap,
            outcome=outcome,
        )


def shapes(
    *schedules: Schedule, micro_batches: int = 8, ranks: int = 4, held: int = 3
) -> st.SearchStrategy[Shape]:
    """Schedules with sizes for which they exist; M = 1, R = 1 and M < S included.

    Args:
        schedules: Those to draw from; default: all that ship.
        micro_batches: The most micro-batches.
        ranks: The most ranks.
        held: The most stages of a rank.
    """
    exist = [
        (schedule, each * count, count)
        for schedule in schedules or SCHEDULES
        for count in range(1, ranks + 1)
        for each in range(1, held + 1)
        if _exists(schedule, each * count, count)
    ]
    sizes = st.tuples(st.sampled_from(exist), st.integers(1, micro_batches))
    return sizes.map(lambda drawn: Shape(drawn[0][0], drawn[1], *drawn[0][1:]))


def _exists(schedule: Schedule, stages: int, ranks: int) -> bool:
    try:
        schedule.placement(stages, ranks)
    except ScheduleError:
        return False
    return True


def plans(*schedules: Schedule, micro_batches: int = 8) -> st.SearchStrategy[PipelinePlan]:
    """Compiled plans of schedules (default: all that ship), of both variants, for any outcome."""
    return st.builds(
        lambda shape, overlap, outcome: shape.compile(overlap=overlap, outcome=outcome),
        shapes(*schedules, micro_batches=micro_batches),
        st.booleans(),
        outcomes(),
    )


@st.composite
def mutants_of(
    draw: st.DrawFn, sound: st.SearchStrategy[PipelinePlan], changes: int = 3
) -> PipelinePlan:
    """Plans with some random changes, most of which spoil them; at most so many."""
    plan, random = draw(sound), draw(st.randoms(use_true_random=False))
    for _ in range(draw(st.integers(1, changes))):
        plan = random_mutant(plan, random)
    return plan


def transport_models(*, step_barrier: bool = False) -> st.SearchStrategy[TransportModel]:
    """All models of the transport, with a barrier after each step if it is asked for."""
    models: Sequence[TransportModel] = TRANSPORT_MODELS
    if step_barrier:
        models = [m.model_copy(update={"step_barrier": True}) for m in models]
    return st.sampled_from(models)


def sizes(micro_batches: int = 12, stages: int = 8) -> st.SearchStrategy[tuple[int, int]]:
    """`(M, S)`, corners included."""
    anything = st.tuples(st.integers(1, micro_batches), st.integers(1, stages))
    return st.sampled_from(CORNERS) | anything


def at_corners(**others: object) -> Callable[[Test], Test]:
    """Run a test of a `size` at every corner, whatever Hypothesis draws besides.

    Args:
        others: The test's other arguments at the corners.
    """

    def decorate(test: Test) -> Test:
        for corner in CORNERS:
            test = example(size=corner, **others)(test)
        return test

    return decorate


def outcomes() -> st.SearchStrategy[Outcome]:
    """Whatever can be asked of an evaluation."""
    return st.builds(
        Outcome,
        compute_loss=st.booleans(),
        reduce_output=st.sampled_from([*get_args(ReduceOutput), None]),
        bcast_loss=st.booleans(),
        return_logits=st.booleans(),
        logits_to=st.sampled_from(get_args(LogitsTo)),
        compute_metrics=st.booleans(),
        replicas=st.integers(1, 3),
    )


@st.composite
def random_transfers(draw: st.DrawFn) -> PipelinePlan:
    """Any messages between any stages, each end at any place of its program, some ends posted."""
    stages = draw(st.integers(1, 4))
    peer = st.integers(0, stages - 1)
    messages = draw(st.lists(st.tuples(peer, peer), max_size=7))
    programs: list[list[str]] = [[] for _ in range(stages)]
    for number, (source, target) in enumerate(messages):
        for stage, end, other in ((source, "S", target), (target, "R", source)):
            words = programs[stage]
            at = draw(st.integers(0, len(words)))
            name = f"{number}:{other}"
            if draw(st.booleans()):
                words.insert(at, f"{end.lower()}{'>' if end == 'S' else '<'}{name}")
                words.insert(draw(st.integers(at + 1, len(words))), f"{end.lower()}.{name}")
            else:
                words.insert(at, f"{end}{name}")
    return pipeline(*map(" ".join, programs), micro_batches=max(1, len(messages)))


@st.composite
def grouped_transfers(draw: st.DrawFn, micro_batches: int = 5, stages: int = 4) -> PipelinePlan:
    """A pipeline whose stages receive and send in groups of any size, a buffer a micro-batch.

    A stage posts the receives of a group before its first forward, and the sends after its last.
    """
    count, length = draw(st.integers(1, micro_batches)), draw(st.integers(2, stages))
    return pipeline(
        *(_grouped_program(draw, count, stage, length) for stage in range(length)),
        micro_batches=count,
        num_buffers=count,
    )


def _grouped_program(draw: st.DrawFn, count: int, stage: int, stages: int) -> str:
    first, last = stage == 0, stage == stages - 1
    cuts = st.lists(st.booleans(), min_size=count, max_size=count)
    begins = [m for m, cut in enumerate(draw(cuts)) if cut or m == 0]
    ends = [m for m, cut in enumerate(draw(cuts)) if cut or m == count - 1]
    ahead = draw(st.booleans())
    words: list[str] = []
    for m in range(count):
        if not first and m in begins:
            stop = next((other for other in begins if other > m), count)
            words += ["{", *(f"r<{k}@{k}" for k in range(m, stop)), "}"]
        words += [] if first else [f"r.{m}@{m}"]
        words += [f"L{m}@{m}"] if first or last else []
        words.append(f"F{m}@{m}")
        if not last and m in ends:
            start = max((other + 1 for other in ends if other < m), default=0)
            words += ["{", *(f"s>{k}@{k}" for k in range(start, m + 1)), "}"]
            words += [] if ahead else [f"s.{k}@{k}" for k in range(start, m + 1)]
    words += [f"s.{k}@{k}" for k in range(count)] if ahead and not last else []
    return " ".join(words)
