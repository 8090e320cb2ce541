"""Items of the caller's data, and the copies that are made of them.

What is fetched is copied at once, and only what a stage needs of it: the caller may fill the same
memory again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from runtime.data.fingerprint import Digests, fingerprint
from runtime.data.loading import OnItsWay, loader_to
from runtime.data.notes import Note, look_of
from runtime.data.samples import samples
from runtime.failure.errors import AgreedError
from runtime.tensors.nested import Flat
from runtime.tensors.ownership import Take, fresh
from schemas import Place

Pair = tuple[Any, Any]
"""`(inputs, labels)` of one micro-batch."""


class DataError(ValueError):
    """The caller's data is not what an evaluation needs."""


class EmptyDataError(AgreedError, DataError):
    """No stage has any data."""


LABELS = "labels"
"""The key of the labels in an item that is a mapping, as data collators of Hugging Face have it."""


@dataclass(frozen=True)
class Fetched:
    """A micro-batch on its way to the device."""

    note: Note
    places: tuple[Place, ...]
    on_its_way: OnItsWay
    nbytes: int
    """Of all of it; what is not needed counts too: the caller's loader made it."""

    def values(self) -> Mapping[Place, Any]:
        """The values for a buffer's places."""
        return dict(zip(self.places, self.on_its_way.arrived(), strict=True))


@dataclass(frozen=True)
class Reading:
    """What a stage takes of its data."""

    inputs: bool
    labels: bool
    fingerprints: bool
    """Whether digests are made."""
    keyword_inputs: bool = False
    """Whether inputs are mappings, and items may be mappings with their `"labels"`."""


class ItemReader:
    """Copies what a stage needs of items."""

    def __init__(
        self, reading: Reading, device: torch.device, reader: str, take: Take = fresh
    ) -> None:
        """Copy to `device`.

        Args:
            reading: What is taken of an item.
            device: Where it goes.
            reader: What messages call the rank.
            take: Gives memory for copies.
        """
        self.reading, self.device, self.reader = reading, device, reader
        self._load = loader_to(device, take)

    def read(self, number: int, item: Any) -> Fetched:
        """A copy of item `number`.

        Raises:
            DataError: it is no micro-batch.
        """
        reading = self.reading
        pair = (_keyword_pair if reading.keyword_inputs else _pair)(number, item)
        wanted = ((Place.INPUT, reading.inputs), (Place.LABEL, reading.labels))
        places = tuple(place for place, is_wanted in wanted if is_wanted)
        halves = [half for half, (_, is_wanted) in zip(pair, wanted, strict=True) if is_wanted]
        (inputs, flat), (labels, flat_labels) = ((half, _flat(half)) for half in pair)
        digests: Digests = (None, None)
        if reading.fingerprints:
            digests = fingerprint(inputs, flat), fingerprint(labels, flat_labels)
        note = Note(
            kind=look_of(inputs, values=True, flat=flat),
            samples=samples(inputs, flat),
            label_samples=samples(labels, flat_labels),
            look=look_of(inputs, values=False, flat=flat),
            label_look=look_of(labels, values=False, flat=flat_labels),
            digests=digests,
        )
        nbytes = _nbytes(inputs, flat) + _nbytes(labels, flat_labels)
        return Fetched(note, places, self._load(halves), nbytes)


def _flat(half: Any) -> Flat | None:
    """The leaves of inputs or labels, unless they are a tensor, as they are mostly."""
    return None if isinstance(half, torch.Tensor) else Flat(half)


def _nbytes(value: Any, flat: Flat | None) -> int:
    if flat is not None:
        return sum(_nbytes(leaf, None) for leaf in flat.leaves)
    if isinstance(value, torch.Tensor):
        plain = value.layout is torch.strided and not value.is_nested
        return value.nbytes if plain else 0
    return int(value.nbytes) if isinstance(value, np.ndarray) else 0


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
