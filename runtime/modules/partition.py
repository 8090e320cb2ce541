"""Partition: which layers belong to which stage.

A partition is written as its boundaries: stage `s` holds the layers from `boundaries[s]` up to but
not including `boundaries[s + 1]`.

Where ranks hold several stages, what counts is the sum of each rank: M micro-batches take at least
M times the dearest rank. The dearest stage comes second: it counts while the pipeline fills and
drains. See `runtime.modules.partition_over_ranks`.
"""

import re
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import TypeAlias

import torch
from torch import nn

from runtime.modules.layers import Layer, type_name
from runtime.modules.partition_over_ranks import over_ranks

TYPE = "type:"


class PartitionError(ValueError):
    """Layers cannot be divided as asked."""


Partition: TypeAlias = str | Sequence[int]
"""How to divide layers: by a rule, or at given boundaries.

- `"uniform"`: into equal numbers of layers;
- `"parameters"`: so that the largest number of parameters on a rank is smallest;
- `"profile"`: so that the longest forward of a rank is shortest, as measured;
- `"type:REGEX"`: so that the largest number of layers on a rank whose class name matches is
  smallest (as DeepSpeed has it: anywhere in the name, in lower or upper case);
- `[0, 3, 5]`: layers 0-2 on stage 0 and 3-4 on stage 1.
"""

Profile = Callable[[], Sequence[float]]
"""Measures the seconds of each layer's forward; the same numbers on every process."""

RULES = "'parameters', 'uniform', 'profile', 'type:REGEX' or boundaries"


def divide(
    layers: Sequence[Layer],
    placement: int | Sequence[int],
    partition: Partition,
    profile: Profile | None = None,
) -> tuple[int, ...]:
    """The boundaries that `partition` means for these layers.

    Args:
        layers: All layers.
        placement: The rank of each stage; or S, where every stage has a rank of its own.
        partition: The rule, or the boundaries.
        profile: For the rule `"profile"`.

    Raises:
        PartitionError: the layers cannot be divided so.
    """
    placement = range(placement) if isinstance(placement, int) else placement
    stages = len(placement)
    if not isinstance(partition, str):
        return explicit(partition, len(layers), stages)
    _require_layers(len(layers), stages)
    if partition == "uniform":
        return over_ranks([1.0] * len(layers), uniform(len(layers), stages), placement)
    if partition == "parameters":
        return balanced(parameter_counts(layers), placement)
    if partition == "profile" and profile is not None:
        return balanced(profile(), placement)
    if partition.startswith(TYPE):
        return balanced(matches(layers, partition.removeprefix(TYPE)), placement)
    raise PartitionError(f"partition is {partition!r}, needed {RULES}")


def uniform(layers: int, stages: int) -> tuple[int, ...]:
    """Boundaries that give every stage the same number of layers, or one more.

    >>> uniform(7, 3)
    (0, 3, 5, 7)
    """
    _require_layers(layers, stages)
    small, larger = divmod(layers, stages)
    sizes = [small + 1 if stage < larger else small for stage in range(stages)]
    return (0, *accumulate(sizes))


def balanced(costs: Sequence[float], placement: int | Sequence[int]) -> tuple[int, ...]:
    """Boundaries that make the dearest rank as cheap as possible; every stage gets a layer.

    Args:
        costs: Cost of each layer, in any unit.
        placement: The rank of each stage; or S, where every stage has a rank of its own.

    Raises:
        PartitionError: there are fewer layers than stages.

    >>> balanced([1, 1, 1, 1, 4], 2)
    (0, 4, 5)
    >>> balanced([1, 1, 1, 1, 1, 1, 4], [0, 1, 0, 1])  # the last stage is dear, so rank 1 has less
    (0, 2, 3, 6, 7)
    """
    placement = range(placement) if isinstance(placement, int) else placement
    return over_ranks(costs, _by_stage(costs, len(placement)), placement)


def _by_stage(costs: Sequence[float], stages: int) -> tuple[int, ...]:
    """Boundaries that make the dearest stage as cheap as possible.

    The linear partition problem, solved exactly by dynamic programming over prefixes of the layers
    (S. Skiena, The Algorithm Design Manual, "The Partition Problem"). Time O(layers^2 stages).
    """
    layers = len(costs)
    _require_layers(layers, stages)
    prefix = [0.0, *accumulate(costs)]
    # best[n]: (cost of the dearest stage, boundaries) for the first n layers
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


def matches(layers: Sequence[Layer], pattern: str) -> list[int]:
    """1 for each layer whose class name matches a regular expression, else 0.

    Raises:
        PartitionError: no layer matches, or the pattern is no regular expression.

    >>> matches([nn.Linear(1, 1), nn.Tanh(), nn.LazyLinear(1)], "linear")
    [1, 0, 1]
    """
    try:
        found = [int(bool(re.search(pattern, type_name(layer), re.IGNORECASE))) for layer in layers]
    except re.error as error:
        raise PartitionError(
            f"partition is {TYPE + pattern!r}, needed a regular expression: {error}"
        ) from error
    if not any(found):
        names = ", ".join(sorted({type_name(layer) for layer in layers}))
        raise PartitionError(f"partition is {TYPE + pattern!r}, but the layers are {names}")
    return found


def parameter_counts(layers: Sequence[Layer]) -> list[int]:
    """The number of parameters of each layer; those to be built are only sketched, on no device.

    Raises:
        PartitionError: a layer cannot be built without memory for its parameters.
    """
    return [parameters(_sketched(number, layer)) for number, layer in enumerate(layers)]


def parameters(layer: nn.Module) -> int:
    """The number of parameters of a layer."""
    return sum(parameter.numel() for parameter in layer.parameters())


def _sketched(number: int, layer: Layer) -> nn.Module:
    if isinstance(layer, nn.Module):
        return layer
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            return layer.build()
    except Exception as error:
        raise PartitionError(
            f"the parameters of layer {number}, {layer!r}, cannot be counted, because it cannot "
            f"be built on the meta device ({error}): needed another partition"
        ) from error


def _require_layers(layers: int, stages: int) -> None:
    if stages > layers:
        raise PartitionError(f"{stages} stages for {layers} layers, needed a layer for each stage")
