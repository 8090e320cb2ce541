"""Partition over ranks that hold several stages: boundaries that even out the sums of the ranks.

To divide a chain of layers so that the dearest of several *sums of pieces* is cheapest is no longer
solved by dynamic programming: what a piece may cost depends on all others of its rank (it is
bin packing with an order). Where there are few divisions, all are tried, and the best is taken.
Where there are many, it is searched: from the division whose dearest stage is cheapest, boundaries
are moved, one or a run of neighbours at a time, as long as that makes a rank cheaper. That ends
where no single move helps, which need not be the best.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate, combinations, pairwise
from math import comb

FEW = 5_000
"""Divisions that are all tried: some 20 ms."""

ROUNDS = 1000
"""Moves at most; far more than any model needs."""

Score = tuple[float, float, float, float]


def over_ranks(
    costs: Sequence[float], boundaries: tuple[int, ...], placement: Sequence[int]
) -> tuple[int, ...]:
    """Boundaries whose dearest rank is cheapest; with many divisions, nearly so.

    Many are more than `FEW`; then no single move makes the dearest rank cheaper. Of divisions whose
    dearest ranks cost the same, one with a cheaper dearest stage is better.
    Time of a round: O(stages^3 + layers stages).

    Args:
        costs: Cost of each layer, in any unit.
        boundaries: To begin with.
        placement: The rank of each stage; where each stage has its own, nothing is to be done.

    >>> over_ranks([1, 1, 1, 5], (0, 1, 2, 3, 4), [0, 1, 0, 1])  # every stage needs its layer
    (0, 1, 2, 3, 4)
    >>> over_ranks([1, 1, 1, 1, 1, 3], (0, 2, 3, 5, 6), [0, 1, 0, 1])
    (0, 2, 3, 5, 6)
    """
    if len(set(placement)) == len(placement):
        return boundaries
    prefix = [0.0, *accumulate(map(float, costs))]
    if comb(len(costs) - 1, len(placement) - 1) <= FEW:
        return min(
            _divisions(len(costs), len(placement)),
            key=lambda division: _score(prefix, division, placement),
        )
    best = _score(prefix, boundaries, placement)
    for _ in range(ROUNDS):
        moves = ((_score(prefix, moved, placement), moved) for moved in _moves(boundaries))
        score, moved = min(moves, default=(best, boundaries))
        if not score < best:
            break
        best, boundaries = score, moved
    return boundaries


def _score(prefix: Sequence[float], boundaries: tuple[int, ...], placement: Sequence[int]) -> Score:
    """The dearest rank, the dearest stage, and how unequal all ranks and all stages are."""
    ranks = [0.0] * (max(placement) + 1)
    dearest = squares = 0.0
    for rank, (start, stop) in zip(placement, pairwise(boundaries), strict=True):
        cost = prefix[stop] - prefix[start]
        ranks[rank] += cost
        dearest, squares = max(dearest, cost), squares + cost * cost
    return max(ranks), dearest, sum(rank * rank for rank in ranks), squares


def _divisions(layers: int, stages: int) -> Iterator[tuple[int, ...]]:
    """All of them."""
    for inner in combinations(range(1, layers), stages - 1):
        yield (0, *inner, layers)


def _moves(boundaries: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """The divisions next to one: a boundary anywhere else, or several in a row by one layer."""
    inner = range(1, len(boundaries) - 1)
    for at in inner:
        for place in range(boundaries[at - 1] + 1, boundaries[at + 1]):
            if place != boundaries[at]:
                yield (*boundaries[:at], place, *boundaries[at + 1 :])
    for first in inner:
        for stop in range(first + 2, len(boundaries)):
            for by in (-1, 1):
                run = tuple(place + by for place in boundaries[first:stop])
                moved = (*boundaries[:first], *run, *boundaries[stop:])
                if moved[first - 1] < moved[first] and moved[stop - 1] < moved[stop]:
                    yield moved
