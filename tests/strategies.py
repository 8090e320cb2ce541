"""Hypothesis strategies that the tests share."""

from collections.abc import Callable
from typing import TypeVar

from hypothesis import example
from hypothesis import strategies as st

from schedcc import Outcome

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
        reduce_output=st.sampled_from(["avg", None]),
        bcast_loss=st.booleans(),
        return_logits=st.booleans(),
        replicas=st.integers(1, 3),
    )
