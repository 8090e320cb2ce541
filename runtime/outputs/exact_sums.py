"""Exact sums: rounded once at the end, whatever the order and however the terms are divided.

A sum that has to travel is two floats, the rounded sum and what rounding it left. So replicas can
add theirs up, and get what one process would have got from all terms.
"""

import math
from collections.abc import Iterable, Sequence

Expansion = tuple[float, ...]
"""Floats whose exact sum is meant."""


def expansion(terms: Iterable[float]) -> Expansion:
    """Two floats that together are the sum of `terms` to twice the precision of one.

    Source: J. Shewchuk (1997), "Adaptive Precision Floating-Point Arithmetic and Fast Robust
    Geometric Predicates"; `math.fsum` rounds the exact sum.

    >>> expansion([1e16, 1.0])
    (1e+16, 1.0)
    >>> expansion([0.5, 0.25])
    (0.75, 0.0)
    """
    values = list(terms)
    total = exact_sum(values)
    rest = exact_sum([*values, -total]) if math.isfinite(total) else 0.0
    return total, rest


def exact_sum(terms: Sequence[float]) -> float:
    """The sum of `terms`, rounded once.

    >>> exact_sum([1e100, 1.0, -1e100])
    1.0
    """
    # fsum refuses infinities of both signs; the plain sum gives what they lead to.
    return math.fsum(terms) if all(map(math.isfinite, terms)) else sum(terms)


def weighted_average(values: Sequence[float], weights: Sequence[float]) -> float:
    """`sum(value x weight) / sum(weight)`, both sums exact; NaN if the weights sum to zero."""
    products = [value * weight for value, weight in zip(values, weights, strict=True)]
    return quotient(exact_sum(products), exact_sum(weights))


def quotient(numerator: float, denominator: float) -> float:
    """`numerator / denominator`; NaN if the denominator is zero."""
    return numerator / denominator if denominator else math.nan
