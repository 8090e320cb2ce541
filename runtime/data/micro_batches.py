"""Micro-batches: fetched from the caller's data a bounded number ahead, and let go of once used.

Fetching goes on while the pipeline runs. As many are fetched at once as are there soon, within
bounds of number and size, so that a fast loader is asked rarely, and neither a slow loader nor
large inputs hold up or fill anything. What is fetched is copied at once, and only what this stage
needs of it: the caller may fill the same memory again.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
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

MOST = 64
"""Micro-batches that are fetched at once, at most."""

MOST_BYTES = 4 * 2**20
"""Bytes of their inputs and labels: the one that goes beyond is the last."""

MOST_SECONDS = 0.1
"""Time after which what is there has to do."""

SOON = 0.002
"""Seconds within which an item is there soon: others are worth no wait."""

FIRST_ALONE, MOST_ALONE = 64, 512
"""How often one micro-batch is fetched at once where the next one took longer: first, and at most.

It doubles each time: an item is waited for again now and then, in case that the loader has become
fast. Once as many as may be were there at once, it begins anew.
"""


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


class Prefetcher:
    """Fetches the micro-batches of one rank."""

    def __init__(
        self,
        data: Iterable[Any] | None,
        reading: Reading,
        device: torch.device,
        *,
        reader: str,
        most: int | None = None,
        take: Take = fresh,
        around: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """Prepare; nothing is fetched yet.

        Args:
            data: Gives pairs `(inputs, labels)`.
            reading: What is taken of them.
            device: Where it goes.
            reader: What messages call the rank.
            most: The number of micro-batches to fetch in all; `None`: all that there are.
            take: Gives memory for copies.
            around: Entered around every use of `data`.
        """
        self._data, self._reading, self._reader = data, reading, reader
        self._most, self._around = most, around
        self._load = loader_to(device, take)
        self._items: Iterator[Any] | None = None
        self._waiting: deque[Fetched] = deque()
        self.count = 0
        """The number of micro-batches that have been fetched."""
        self.ended = False
        """Whether there are no more."""
        self._last_nbytes = 0
        self._alone = 0
        """How often one micro-batch is fetched at once from now on."""
        self._next_alone = FIRST_ALONE

    @property
    def is_empty(self) -> bool:
        """Whether no micro-batch has been fetched that was not taken."""
        return not self._waiting

    @property
    def one_by_one(self) -> bool:
        """Whether micro-batches are so large that only one is fetched at once.

        The next one is then best fetched before the one before it is used, so that it is copied
        meanwhile.
        """
        return self._last_nbytes >= MOST_BYTES and not self.ended

    @property
    def waiting(self) -> list[Note]:
        """What is known of the micro-batches that have been fetched and not taken."""
        return [fetched.note for fetched in self._waiting]

    def fetch(self, least: int = 1) -> None:
        """Fetch what is there soon: one micro-batch at least, unless the data has ended.

        A pipeline does not stand still for what comes later. A loader that works meanwhile in
        processes of its own, and gives one micro-batch in the time of a stage, costs nothing so.
        Only the first time, what comes within `MOST_SECONDS` is waited for: short data is then
        known to be short before its plan is made.

        Args:
            least: So many micro-batches are to be there, whatever it takes.

        Raises:
            DataError: there is no data, or an item is no micro-batch.
        """
        if self._data is None:
            raise DataError(f"{self._reader} reads micro-batches, but its data is None")
        start, nbytes, runs = time.monotonic(), 0, self.count > 0
        most = max(least, MOST) if self._alone == 0 else max(least, 1)
        self._alone = max(0, self._alone - 1)
        with self._around():
            while not self.ended and len(self._waiting) < most:
                begin, needed = time.monotonic(), len(self._waiting) < least
                if self.count == self._most or (item := self._next()) is _END:
                    self.ended = True
                    break
                late = time.monotonic() - begin > SOON
                if late and not needed and self._alone == 0:
                    self._alone = self._next_alone
                    self._next_alone = min(2 * self._next_alone, MOST_ALONE)
                self._last_nbytes = self._take(item)
                nbytes += self._last_nbytes
                del item
                slow = time.monotonic() - start >= MOST_SECONDS or (late and runs)
                enough = slow or nbytes >= MOST_BYTES
                if enough and len(self._waiting) >= least:
                    break
        if len(self._waiting) >= MOST:
            self._next_alone = FIRST_ALONE
        self.ended = self.ended or self.count == self._most

    def take(self) -> Fetched:
        """The next micro-batch; it has to be there."""
        return self._waiting.popleft()

    def _next(self) -> Any:
        if self._items is None:
            assert self._data is not None
            self._items = iter(self._data)
        if self._waiting:
            self._waiting[-1].on_its_way.settle()  # it may lie in what is filled anew now
        return next(self._items, _END)

    def _take(self, item: Any) -> int:
        """Copy what is needed of an item; the size of all of it, in bytes."""
        reading = self._reading
        pair = (_keyword_pair if reading.keyword_inputs else _pair)(self.count, item)
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
        self._waiting.append(Fetched(note, places, self._load(halves)))
        self.count += 1
        # What is not needed counts too: the caller's loader made it.
        return _nbytes(inputs, flat) + _nbytes(labels, flat_labels)


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


_END = object()


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
