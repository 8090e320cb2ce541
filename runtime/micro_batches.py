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


LABELS = "labels"
"""The key of the labels in an item that is a mapping, as data collators of Hugging Face have it."""


def draw(
    data: Iterable[Any] | None, count: int, *, stage_id: int, keyword_inputs: bool = False
) -> list[Pair]:
    """Draw up to `count` micro-batches, and no more.

    Args:
        data: Gives pairs `(inputs, labels)`; with `keyword_inputs`, also mappings of keyword
            arguments with the labels under `"labels"`.
        count: The most to draw.
        stage_id: Who draws, for messages.
        keyword_inputs: Whether inputs are keyword arguments of the first layer.

    Raises:
        DataError: there is no data, or an item is something else.
    """
    if data is None:
        raise DataError(f"stage {stage_id} reads micro-batches, but its data is None")
    pair = _keyword_pair if keyword_inputs else _pair
    return [pair(number, item) for number, item in enumerate(islice(data, count))]


def _pair(number: int, item: Any) -> Pair:
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        size = f" of {len(item)}" if isinstance(item, (tuple, list)) else ""
        raise DataError(
            f"item {number} of the data is a {type(item).__name__}{size}, "
            "needed a pair (inputs, labels)"
        )
    inputs, labels = item
    return inputs, labels


def _keyword_pair(number: int, item: Any) -> Pair:
    if isinstance(item, Mapping):
        inputs = dict(item)
        return inputs, inputs.pop(LABELS, None)
    inputs, labels = _pair(number, item)
    if not isinstance(inputs, Mapping):
        raise DataError(
            f"the inputs of item {number} are a {type(inputs).__name__}, "
            "needed a mapping of keyword arguments (keyword_inputs=True)"
        )
    return dict(inputs), labels  # a plain one: torch knows no other mappings as structures


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
