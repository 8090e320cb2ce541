"""Values of a micro-batch: its losses and metrics, scalars in nested tuples, lists and dicts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

LossFunction = Callable[[Any, Any], Any]
"""`(output, label) -> loss`: a scalar tensor, or scalars in nested tuples, lists and dicts."""

MetricFunction = Callable[[Any, Any], Any]
"""`(output, label) -> value`, like a loss function."""


@dataclass(frozen=True)
class Layout:
    """How values are nested, and so the order of their scalars."""

    structure: pytree.TreeSpec

    @cached_property
    def is_loss_alone(self) -> bool:
        """Whether there is one loss, and nothing else: mostly so, and asked often."""
        return self.structure == _LOSS_ALONE.structure

    @property
    def size(self) -> int:
        """The number of scalars."""
        return self.structure.num_leaves

    def rebuild(self, scalars: Sequence[float]) -> dict[str, Any]:
        """The nested values with `scalars`, in order."""
        if self.is_loss_alone:
            return {"loss": scalars[0], "metrics": {}}
        values: dict[str, Any] = pytree.tree_unflatten(list(scalars), self.structure)
        return values

    def to_message(self) -> dict[str, Any]:
        """Nested scalars: torch's own structures are no messages."""
        return self.rebuild([0.0] * self.size)

    @classmethod
    def from_message(cls, value: Any) -> "Layout":
        """That of nested scalars."""
        return layout_of(value)

    def __str__(self) -> str:
        return str(self.rebuild([f"#{n}" for n in range(self.size)]))  # type: ignore[misc]


def layout_of(values: Any) -> Layout:
    """The layout of nested scalars."""
    return Layout(pytree.tree_structure(values))


@dataclass(frozen=True)
class Measure:
    """What is computed from the output and the label of every micro-batch."""

    loss_fn: LossFunction | None
    metrics: Mapping[str, MetricFunction]

    def __call__(self, output: Any, label: Any) -> dict[str, Any]:
        """`{"loss": ..., "metrics": {name: ...}}`, all of it scalars; no loss without `loss_fn`.

        Raises:
            ValueError: a function returned something else.
        """
        values: dict[str, Any] = {}
        if self.loss_fn is not None:
            values["loss"] = _scalars("loss_fn", self.loss_fn(output, label))
        values["metrics"] = {
            name: _scalars(f"metric {name!r}", function(output, label))
            for name, function in self.metrics.items()
        }
        return values


Scalar = torch.Tensor | float

_LOSS_ALONE = Layout(pytree.tree_structure({"loss": 0.0, "metrics": {}}))


def flatten(values: dict[str, Any]) -> tuple[list[Scalar], Layout]:
    """The scalars of nested values, and how they are nested."""
    loss = values.get("loss")
    if isinstance(loss, torch.Tensor) and not values["metrics"]:  # mostly there is nothing else
        return [loss], _LOSS_ALONE
    leaves, structure = pytree.tree_flatten(values)
    return leaves, Layout(structure)


def _scalars(what: str, value: Any) -> Any:
    if _is_scalar(value):  # nearly always, and soon told
        return value
    for path, leaf in pytree.tree_flatten_with_path(value)[0]:
        if not _is_scalar(leaf):
            where = f" at {pytree.keystr(path)}" if path else ""
            raise ValueError(f"{what} returned {_found(leaf)}{where}, needed real scalars")
    return value


def _is_scalar(leaf: Any) -> bool:
    if isinstance(leaf, torch.Tensor):
        return leaf.numel() == 1 and not leaf.is_complex()
    if isinstance(leaf, np.ndarray):
        return leaf.ndim == 0 and leaf.dtype.kind in "biuf"
    return isinstance(leaf, (int, float, np.integer, np.floating))


def _found(leaf: Any) -> str:
    if isinstance(leaf, torch.Tensor):
        return f"{leaf.dtype} {list(leaf.shape)}".removeprefix("torch.")
    return repr(leaf)
