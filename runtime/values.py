"""Values of a micro-batch: its losses and metrics, scalars in nested tuples, lists and dicts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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

    @property
    def size(self) -> int:
        """The number of scalars."""
        return self.structure.num_leaves

    def rebuild(self, scalars: Sequence[float]) -> dict[str, Any]:
        """The nested values with `scalars`, in order."""
        values: dict[str, Any] = pytree.tree_unflatten(list(scalars), self.structure)
        return values

    def __str__(self) -> str:
        return str(self.rebuild([f"#{n}" for n in range(self.size)]))  # type: ignore[misc]


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


def flatten(values: dict[str, Any], device: torch.device) -> tuple[list[torch.Tensor], Layout]:
    """The scalars of nested values as float64 tensors on `device`, without waiting for it."""
    leaves, structure = pytree.tree_flatten(values)
    return [_float64(leaf, device) for leaf in leaves], Layout(structure)


def _float64(leaf: Any, device: torch.device) -> torch.Tensor:
    if isinstance(leaf, torch.Tensor):
        return leaf.detach().reshape(()).to(device, torch.float64, non_blocking=True)
    return torch.tensor(float(leaf), dtype=torch.float64, device=device)


def _scalars(what: str, value: Any) -> Any:
    for path, leaf in pytree.tree_flatten_with_path(value)[0]:
        if isinstance(leaf, torch.Tensor):
            if leaf.numel() == 1 and not leaf.is_complex():
                continue
            found = f"{'complex ' if leaf.is_complex() else ''}shape {list(leaf.shape)}"
        elif isinstance(leaf, (int, float)):
            continue
        else:
            found = repr(leaf)
        where = f" at {pytree.keystr(path)}" if path else ""
        raise ValueError(f"{what} returned {found}{where}, needed a tensor with one element")
    return value
