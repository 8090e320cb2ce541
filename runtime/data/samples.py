"""Samples: how many a micro-batch has, where that can be told for certain.

The loss of a data set is the average over its samples, so a micro-batch of 2 weighs less than one
of 8. Tensors do not say which of their dimensions counts samples: labels may be packed, have the
sequence first, hold class weights, or be a list of objects. Hence the number is taken only where
all tensors of inputs and labels agree on their first dimension (where that does not count samples,
as in data that is packed into one row, give a `weight_fn`). Elsewhere, nobody guesses:
micro-batches that all look alike weigh the same, and for others the caller has to give a
`weight_fn`.
"""

from collections.abc import Callable
from numbers import Real
from typing import Any

import numpy as np
import torch

from runtime.tensors.nested import Flat

WeightFunction = Callable[[Any], "float | torch.Tensor"]
"""`label -> weight` of a micro-batch in the average."""


class WeightError(ValueError):
    """The weight of a micro-batch in the average is not certain, or cannot be used."""


def samples(value: Any, flat: Flat | None = None) -> tuple[int, ...]:
    """The first dimensions of all tensors and arrays in a value, each once and in order.

    Args:
        value: Inputs or labels.
        flat: The same, if its leaves are known.

    >>> samples({"ids": torch.zeros(8, 5), "mask": torch.zeros(8, 5), "scale": torch.tensor(1.0)})
    (8,)
    >>> samples([torch.zeros(3, 4), torch.zeros(2, 4)])
    (2, 3)
    """
    if type(value) is torch.Tensor and not value.is_nested:
        return tuple(value.shape[:1])
    leaves = (flat or Flat(value)).leaves
    shapes = (leaf.shape for leaf in leaves if _has_shape(leaf))
    return tuple(sorted({int(shape[0]) for shape in shapes if len(shape)}))


def _has_shape(leaf: Any) -> bool:
    if isinstance(leaf, torch.Tensor):
        return not leaf.is_nested
    return isinstance(leaf, np.ndarray)


class SampleWeights:
    """The weight of each micro-batch on the last stage, by its samples."""

    def __init__(self, *, needed: bool) -> None:
        """Begin an evaluation.

        Args:
            needed: Whether anything is averaged by weight, so that an uncertain one is an error.
        """
        self._needed = needed
        self._first: str | None = None
        self.uncertain: str | None = None
        """How the micro-batches look, which are alike and weigh 1 each; `None`: by samples."""

    def weight(self, inputs: tuple[int, ...], labels: tuple[int, ...], look: str) -> float:
        """The weight of the next micro-batch.

        Args:
            inputs: `samples` of its inputs.
            labels: `samples` of its labels.
            look: The same for micro-batches whose inputs and labels are of one shape.

        Raises:
            WeightError: it is not certain, and micro-batches differ.
        """
        certain = len(inputs) == 1 and inputs == labels
        alike = self._first in (None, look)
        self._first = self._first or look
        if certain and self.uncertain is None:
            return float(inputs[0])
        if alike:
            self.uncertain = look
            return 1.0
        if not self._needed:
            return float("nan")
        raise WeightError(
            "the number of samples of a micro-batch is not certain: the first dimensions are "
            f"{_said(inputs)} in its inputs and {_said(labels)} in its labels, and it does not "
            "look like the first micro-batch; needed weight_fn, a function label -> weight"
        )


def require_weight(weight: Any) -> "float | torch.Tensor":
    """What a `weight_fn` returned, if that is one number.

    Raises:
        WeightError: it is something else.
    """
    if isinstance(weight, torch.Tensor) and weight.numel() == 1 and not weight.is_complex():
        return weight
    if isinstance(weight, Real):
        return float(weight)
    shown = f"a tensor {list(weight.shape)}" if isinstance(weight, torch.Tensor) else repr(weight)
    raise WeightError(f"weight_fn returned {shown[:200]}, needed one real number")


def require_alike(uncertain: list[str | None]) -> None:
    """Compare what the replicas know of the looks of micro-batches that weigh 1 each.

    Raises:
        WeightError: those of different replicas differ.
    """
    if any(look is not None and look != uncertain[0] for look in uncertain):
        raise WeightError(
            "the number of samples of a micro-batch is not certain, and the replicas have "
            "micro-batches that do not look alike; needed weight_fn, a function label -> weight"
        )


def _said(found: tuple[int, ...]) -> str:
    return " and ".join(map(str, found)) or "none"
