"""Partition: which layers belong to which stage.

A partition is written as its boundaries: stage `s` holds the layers from `boundaries[s]` up to but
not including `boundaries[s + 1]`.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Literal, TypeAlias

from torch import nn


class PartitionError(ValueError):
    """Layers cannot be divided as asked."""


Partition: TypeAlias = Literal["parameters", "uniform"] | Sequence[int]
"""How to divide layers: by a rule, or at given boundaries."""


def divide(layers: Sequence[nn.Module], stages: int, partition: Partition) -> tuple[int, ...]:
    """The boundaries that `partition` means for these layers.

    Raises:
        PartitionError: the layers cannot be divided so.
    """
    if partition == "parameters":
        return balanced([parameters(layer) for layer in layers], stages)
    if partition == "uniform":
        return uniform(len(layers), stages)
    if isinstance(partition, str):
        raise PartitionError(
            f"partition is {partition!r}, needed 'parameters', 'uniform' or boundaries"
        )
    return explicit(partition, len(layers), stages)


def uniform(layers: int, stages: int) -> tuple[int, ...]:
    """Boundaries that give every stage the same number of layers, or one more.

    >>> uniform(7, 3)
    (0, 3, 5, 7)
    """
    _require_layers(layers, stages)
    small, larger = divmod(layers, stages)
    sizes = [small + 1 if stage < larger else small for stage in range(stages)]
    return (0, *accumulate(sizes))


def balanced(costs: Sequence[float], stages: int) -> tuple[int, ...]:
    """Boundaries that make the most expensive stage as cheap as possible.

    The linear partition problem, solved exactly by dynamic programming over prefixes of the layers
    (S. Skiena, The Algorithm Design Manual, "The Partition Problem"); every stage gets at least one
    layer. Time O(layers^2 stages).

    Args:
        costs: Cost of each layer, in any unit.
        stages: S.

    Raises:
        PartitionError: there are fewer layers than stages.

    >>> balanced([1, 1, 1, 1, 4], 2)
    (0, 4, 5)
    """
    layers = len(costs)
    _require_layers(layers, stages)
    prefix = [0.0, *accumulate(costs)]
    # best[n]: (cost of the most expensive stage, boundaries) for the first n layers
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, (0,))}
    for stage in range(1, stages + 1):
        best = {
            stop: min(
                (max(best[start][0], prefix[stop] - prefix[start]), (*best[start][1], stop))
                for start in best
                if start < stop
            )
            for stop in range(stage, layers - stages + stage + 1)
        }
    return best[layers][1]


def explicit(boundaries: Sequence[int], layers: int, stages: int) -> tuple[int, ...]:
    """The given boundaries, if they divide `layers` layers into `stages` stages.

    Raises:
        PartitionError: they do not.
    """
    found = tuple(boundaries)
    increasing = all(left < right for left, right in pairwise(found))
    if len(found) != stages + 1 or found[0] != 0 or found[-1] != layers or not increasing:
        raise PartitionError(
            f"partition is {list(found)}, needed {stages + 1} increasing boundaries "
            f"from 0 to {layers}"
        )
    return found


def parameters(layer: nn.Module) -> int:
    """The number of parameters of a layer."""
    return sum(parameter.numel() for parameter in layer.parameters())


def _require_layers(layers: int, stages: int) -> None:
    if stages > layers:
        raise PartitionError(f"{stages} stages for {layers} layers, needed a layer for each stage")
