"""Micro-batches: drawing them from the caller's data, and handing them to the interpreter."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch.utils import _pytree as pytree

from runtime.failure.errors import AgreedError
from runtime.loading import OnItsWay, loader_to
from schemas import Place

Pair = tuple[Any, Any]
"""`(inputs, labels)` of one micro-batch."""


class DataError(ValueError):
    """The caller's data is not what an evaluation needs."""


class EmptyDataError(AgreedError, DataError):
    """No stage has any data."""


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
    """Micro-batches drawn ahead; each is on its way to the device while the one before is used."""

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
        self._loader = loader_to(device)
        self._ahead: tuple[int, list[OnItsWay]] | None = None

    def load(self, micro_batch: int) -> Mapping[Place, Any]:
        """The micro-batch's values, on the device; the next one's set out."""
        if not self._wanted:
            return {}
        if self._ahead is None or self._ahead[0] != micro_batch:
            self._ahead = self._set_out(micro_batch)
        values = self._ahead[1]
        following = micro_batch + 1
        self._ahead = self._set_out(following) if following < len(self._drawn) else None
        places = (place for place, _ in self._wanted)
        return {place: value.arrived() for place, value in zip(places, values, strict=True)}

    def copy_of_input(self, micro_batch: int) -> Any:
        """The micro-batch's inputs, on the device, to be used up without harm to the data."""
        inputs = self._loader(self._drawn[micro_batch][0]).arrived()
        return pytree.tree_map_only(torch.Tensor, torch.clone, inputs)

    def _set_out(self, micro_batch: int) -> tuple[int, list[OnItsWay]]:
        pair = self._drawn[micro_batch]
        return micro_batch, [self._loader(pair[column]) for _, column in self._wanted]


@dataclass(frozen=True)
class CopiedInputs:
    """Inputs that a trial may use up: copies of those of a source."""

    source: DrawnSource
    first: bool
    """Whether the stage reads inputs."""

    def load(self, micro_batch: int) -> Mapping[Place, Any]:
        """A copy of the micro-batch's inputs, on the first stage."""
        return {Place.INPUT: self.source.copy_of_input(micro_batch)} if self.first else {}
