"""Hypothesis strategies that the tests share."""

from collections.abc import Callable
from typing import TypeVar

from hypothesis import example
from hypothesis import strategies as st

from schedcc import Outcome
from schemas import PipelinePlan
from tests.support.plans import pipeline

Test = TypeVar("Test", bound=Callable[..., None])

CORNERS = ((1, 1), (4, 1), (1, 4), (2, 5), (5, 2))
"""Sizes `(M, S)` that every test of a shape must see: S = 1, M = 1, M < S, M > S."""


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
    return st.builds(
        Outcome,
        compute_loss=st.booleans(),
        reduce_output=st.sampled_from(["avg", "sum", "mean_of_means", None]),
        bcast_loss=st.booleans(),
        return_logits=st.booleans(),
        logits_to=st.sampled_from(["last", "first", "all"]),
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
