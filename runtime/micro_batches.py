"""Micro-batches: drawing them from the caller's data, and handing them to the interpreter."""

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

import torch
from torch.utils import _pytree as pytree

from schemas import Place

Pair = tuple[Any, Any]
"""`(inputs, labels)` of one micro-batch."""


class DataError(ValueError):
    """The caller's data is not what an evaluation needs."""


def draw(data: Iterable[Any] | None, count: int, *, stage_id: int) -> list[Pair]:
    """Draw up to `count` micro-batches.

    Raises:
        DataError: there is no data, or an item is not a pair `(inputs, labels)`.
    """
    if data is None:
        raise DataError(f"stage {stage_id} reads micro-batches, but its data is None")
    items = list(islice(data, count))
    for number, item in enumerate(items):
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            size = f" of {len(item)}" if isinstance(item, (tuple, list)) else ""
            raise DataError(
                f"item {number} of the data is a {type(item).__name__}{size}, "
                "needed a pair (inputs, labels)"
            )
    return [(inputs, labels) for inputs, labels in items]


class DrawnSource:
    """Micro-batches drawn ahead, moved to the device when they are loaded."""

    def __init__(
        self, drawn: list[Pair], device: torch.device, *, inputs: bool, labels: bool
    ) -> None:
        """Serve the inputs, the labels, or both, of `drawn`."""
        self._drawn, self._device = drawn, device
        self._wanted = [
            (place, column)
            for place, column, wanted in ((Place.INPUT, 0, inputs), (Place.LABEL, 1, labels))
            if wanted
        ]

    def load(self, micro_batch: int) -> Mapping[Place, Any]:
        """The micro-batch's values, on the device."""
        return {
            place: self._to_device(self._drawn[micro_batch][column])
            for place, column in self._wanted
        }

    def copy_of_input(self, micro_batch: int) -> Any:
        """The micro-batch's inputs, on the device, to be used up without harm to the data."""
        inputs = self._to_device(self._drawn[micro_batch][0])
        return pytree.tree_map_only(torch.Tensor, torch.clone, inputs)

    def _to_device(self, value: Any) -> Any:
        return pytree.tree_map_only(
            torch.Tensor, lambda tensor: tensor.to(self._device, non_blocking=True), value
        )
