"""Micro-batches: fetched from the caller's data a bounded number ahead, and let go of once used.

Fetching goes on while the pipeline runs. As many are fetched at once as are there soon, within
bounds of number and size, so that a fast loader is asked rarely, and neither a slow loader nor
large inputs hold up or fill anything. A loader that may be used by a thread is asked while the rank
computes (`runtime.data.ahead`). What is fetched is copied at once, and only what this stage needs
of it: the caller may fill the same memory again.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal, TypeAlias

import torch
from torch.utils.data import DataLoader

from runtime.data.ahead import Ahead, wait_until_free
from runtime.data.items import DataError, Fetched, ItemReader
from runtime.data.notes import Note

MOST = 64
"""Micro-batches that are fetched and not used, at most, unless the caller says otherwise."""

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


FetchInThread: TypeAlias = "bool | Literal['auto']"
"""Whether a thread asks a loader. `"auto"`: on a CPU, a `DataLoader` with workers.

What such a loader does in the process that asks it is to take over what a worker has made.
"""


@dataclass(frozen=True)
class Fetching:
    """How an evaluator's data is fetched."""

    prefetch: int = MOST
    """Micro-batches that are fetched before they are needed, at most."""
    in_thread: FetchInThread = "auto"

    def __post_init__(self) -> None:
        """Refuse what is no choice.

        Raises:
            ValueError: one sentence with the value and what was needed.
        """
        is_number = isinstance(self.prefetch, int) and not isinstance(self.prefetch, bool)
        if not is_number or self.prefetch < 0:
            raise ValueError(f"prefetch is {self.prefetch!r}, needed an integer of at least 0")
        if self.in_thread not in (True, False, "auto"):
            raise ValueError(f"fetch_in_thread is {self.in_thread!r}, needed True, False or 'auto'")

    def needs_thread(self, data: Any, device: torch.device) -> bool:
        """Whether a thread is to ask `data` for micro-batches that go to `device`."""
        if self.in_thread != "auto":
            return self.in_thread
        return device.type == "cpu" and isinstance(data, DataLoader) and data.num_workers > 0


class Prefetcher:
    """Fetches the micro-batches of one rank."""

    def __init__(
        self,
        data: Iterable[Any] | None,
        reader: ItemReader,
        *,
        most: int | None = None,
        ahead: int = MOST,
        around: Callable[[], AbstractContextManager[None]],
        check: Callable[[], None] = lambda: None,
        in_thread: bool = False,
    ) -> None:
        """Prepare; nothing is fetched yet.

        Args:
            data: Gives pairs `(inputs, labels)`.
            reader: Copies what is needed of them.
            most: The number of micro-batches to fetch in all; `None`: all that there are.
            ahead: So many are fetched before they are needed, at most.
            around: Entered around every use of `data` by the main thread.
            check: Called while a thread is waited for; raises if the run has failed elsewhere.
            in_thread: Whether a thread fetches them.
        """
        self._data, self._reader = data, reader
        self._most, self._most_ahead, self._around = most, ahead, around
        self._check, self._in_thread = check, in_thread and ahead > 0
        self._items: Iterator[Any] | None = None
        self._waiting: deque[Fetched] = deque()
        self.count = 0
        """The number of micro-batches that have been fetched."""
        self.ended = False
        """Whether there are no more."""
        self._thread: Ahead[Fetched] | None = None
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
        large = self._last_nbytes >= MOST_BYTES and self._most_ahead > 0
        return large and not self.ended

    @property
    def waiting(self) -> list[Note]:
        """What is known of the micro-batches that have been fetched and not taken."""
        return [fetched.note for fetched in self._waiting]

    def fetch(self, least: int = 1) -> None:
        """Fetch what is there soon: one micro-batch at least, unless the data has ended.

        A pipeline does not stand still for what comes later. A loader that works meanwhile, in
        processes of its own or asked by a thread, and gives one micro-batch in the time of a stage,
        costs nothing so. Only the first time, what comes within `MOST_SECONDS` is waited for: short
        data is then known to be short before its plan is made. (A thread is not waited for.)

        Args:
            least: So many micro-batches are to be there, whatever it takes.

        Raises:
            DataError: there is no data, or an item is no micro-batch.
        """
        if self._data is None:
            raise DataError(f"{self._reader.reader} reads micro-batches, but its data is None")
        if self._items is None:
            wait_until_free(self._data, self._check)
            with self._around():  # a loader that begins may draw a seed
                self._items = iter(self._data)
            if self._in_thread:
                self._thread = self._start(self._items)
        if self._thread is not None:
            found, self.ended = self._thread.collect(least - len(self._waiting), self._check)
            self._waiting.extend(found)
            self.count += len(found)
        else:
            with self._around():
                self._fetch_here(self._items, least)
        self.ended = self.ended or self.count == self._most

    def take(self) -> Fetched:
        """The next micro-batch; it has to be there."""
        if self._thread is not None:
            self._thread.used()
        return self._waiting.popleft()

    def close(self) -> None:
        """Fetch nothing more."""
        if self._thread is not None:
            self._thread.close()

    def _fetch_here(self, items: Iterator[Any], least: int) -> None:
        start, nbytes, runs = time.monotonic(), 0, self.count > 0
        most = max(least, self._most_ahead if self._alone == 0 else 1)
        self._alone = max(0, self._alone - 1)
        while not self.ended and len(self._waiting) < most:
            begin, needed = time.monotonic(), len(self._waiting) < least
            if self._waiting:
                self._waiting[-1].on_its_way.settle()  # it may lie in what is filled anew now
            if self.count == self._most or (item := next(items, _END)) is _END:
                self.ended = True
                break
            late = time.monotonic() - begin > SOON
            if late and not needed and self._alone == 0:
                self._alone = self._next_alone
                self._next_alone = min(2 * self._next_alone, MOST_ALONE)
            self._waiting.append(self._reader.read(self.count, item))
            del item
            self.count += 1
            self._last_nbytes = self._waiting[-1].nbytes
            nbytes += self._last_nbytes
            slow = time.monotonic() - start >= MOST_SECONDS or (late and runs)
            enough = slow or nbytes >= MOST_BYTES
            if enough and len(self._waiting) >= least:
                break
        if len(self._waiting) >= self._most_ahead:
            self._next_alone = FIRST_ALONE

    def _start(self, items: Iterator[Any]) -> Ahead[Fetched] | None:
        """A thread that fetches; `None`: the system gives none."""
        # What gives memory in this thread is for this thread only.
        reader = ItemReader(self._reader.reading, self._reader.device, self._reader.reader)
        most, numbers = self._most, count()

        def make() -> tuple[Fetched, int] | None:
            number = next(numbers)
            if number == most or (item := next(items, _END)) is _END:
                return None
            fetched = reader.read(number, item)
            fetched.on_its_way.settle()  # it may lie in what is filled anew then
            return fetched, fetched.nbytes

        try:
            return Ahead(make, self._data, most=self._most_ahead, most_bytes=MOST_BYTES)
        except RuntimeError:  # there are too many
            return None


_END = object()
