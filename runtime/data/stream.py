"""The stream of micro-batches through a run: which there are, and what all ranks know of them.

The rank of the first stage fetches micro-batches while the pipeline runs, in *windows* of as many
as are there. A window is told to the ranks behind it as a part of the transfer of the micro-batch
before it, so whatever orders transfers orders windows, too::

    channel 0 -> 1    ... activation 7 | window 8..11 | activation 8 | activation 9 ...

The first window of a run is agreed on by all ranks before it. A window that is the last one says
so, and what the plan has for micro-batches that do not exist is left out: a plan without some whole
micro-batches is as sound as it was.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from runtime.data.fingerprint import difference
from runtime.data.items import DataError
from runtime.data.micro_batches import Prefetcher
from runtime.data.notes import Note
from runtime.data.route import Route
from schemas import Place

FETCHING = "the fetching of micro-batches"
"""What a rank is at, for reports of failures."""


@dataclass(frozen=True)
class Window:
    """Micro-batches that have been fetched on the rank of the first stage."""

    first: int
    notes: tuple[Note, ...]
    ended: bool
    """Whether there are no more."""

    @property
    def stop(self) -> int:
        """The number of the micro-batch after the last one."""
        return self.first + len(self.notes)


class Phases(Protocol):
    """Told what a rank does where no instruction says it."""

    def phase(self, at: str, *, waits_for: str = ..., patient: bool = False) -> None:
        """The rank is at something that may take long."""


def window_of(prefetcher: Prefetcher, first: int, most: int | None, known: int = 0) -> Window:
    """What has been fetched, from micro-batch `first` on, and no more than `most`.

    Args:
        prefetcher: Has fetched it.
        first: The first micro-batch of the window.
        most: The number of micro-batches; `None`: all.
        known: So many that were fetched, and not taken, come before `first`.
    """
    fetched = prefetcher.waiting[known:]
    waiting = fetched[:most]
    return Window(first, tuple(waiting), prefetcher.ended and len(waiting) == len(fetched))


class Stream:
    """The micro-batches of one run, as one rank sees them."""

    def __init__(
        self,
        route: Route,
        window: Window,
        limit: int | None,
        prefetcher: Prefetcher | None,
        phases: Phases,
        *,
        rank: str = "stage 0",
        before: int = 0,
        exact: bool = False,
        ended: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Begin with the window that all ranks have agreed on.

        Args:
            route: What this rank has to do with the stream.
            window: The first window.
            limit: The number of micro-batches of the plan, if it has one: the run has no more.
            prefetcher: Of this rank's own data, if it reads any.
            phases: Told when the rank fetches, or waits for a window.
            rank: What this rank is called in messages.
            before: Micro-batches of the data that came before this run.
            exact: Whether the data has to last for the whole plan.
            ended: Told the number of micro-batches, if they are fewer than the plan's.
        """
        self._route, self._limit, self._prefetcher = route, limit, prefetcher
        self._phases, self._rank, self._before = phases, rank, before
        self._exact, self._ended = exact, ended
        self._notes: dict[int, Note] = {}
        self._labels: dict[int, Note] = {}
        self._loaded: dict[int, dict[Place, Any]] = {}
        self._taken = 0
        self._windows: dict[int, Window] = {}
        """Those that have not been told to every rank, by their first micro-batch."""
        self._untold: dict[int, int] = {}
        self._data_ended = False
        self.receive: Callable[[], Window] | None = None
        """Receives the next window, on a rank that does not fetch."""
        self.count = 0
        """Micro-batches that are known to exist."""
        self.complete = False
        """Whether there are no others."""
        self._take_in(window)

    def has(self, micro_batch: int) -> bool:
        """Whether a micro-batch exists; waits until that is known.

        Raises:
            DataError: this rank's data is damaged, or has another length than the first stage's.
        """
        while micro_batch >= self.count and not self.complete:
            self._extend()
        return micro_batch < self.count

    def knows(self, micro_batch: int) -> bool:
        """Whether `has` need not wait for another rank."""
        return micro_batch < self.count or self.complete or self._route.told_at is None

    def note(self, micro_batch: int) -> Note:
        """What is known of the inputs of one of the latest micro-batches."""
        return self._notes[micro_batch]

    def label_note(self, micro_batch: int) -> Note:
        """What this rank knows of one of the latest micro-batches that it has loaded."""
        return self._labels[micro_batch]

    def kind(self, micro_batch: int) -> str:
        """What the inputs of one of the latest micro-batches look like."""
        return self._notes[micro_batch].kind

    def load(self, stage: int, micro_batch: int) -> Mapping[Place, Any]:
        """The values that a stage reads of a micro-batch.

        Raises:
            DataError: this rank's data has ended, or is not that of the first stage.
        """
        if self._prefetcher is None:
            return {}
        while self._taken <= micro_batch:
            self._loaded[self._taken] = self._take(self._prefetcher, self._taken)
            self._taken += 1
        values = self._loaded.get(micro_batch, {})
        read = {Place.INPUT} if stage == 0 else set()
        read |= {Place.LABEL} if stage == self._route.last else set()
        found = {place: values.pop(place) for place in read & values.keys()}
        if not values:
            self._loaded.pop(micro_batch, None)
        return found

    def forwarded(self, stage: int, micro_batch: int) -> None:
        """A stage has forwarded a micro-batch; after the last one nothing of it is needed."""
        if stage == self._route.last:
            self._notes.pop(micro_batch, None)
            self._labels.pop(micro_batch, None)

    def follows_receive(self, stage: int, micro_batch: int) -> bool:
        """Whether a window comes right behind the activation of a micro-batch for a stage."""
        last_known = micro_batch == self.count - 1
        return stage == self._route.told_at and last_known and not self.complete

    def follows_send(self, stage: int, micro_batch: int) -> Window | None:
        """The window to be told right behind the activation of a micro-batch from a stage."""
        if stage == max(self._route.stages):
            self._notes.pop(micro_batch, None)
        if stage not in self._route.tells_at:
            return None
        if micro_batch == self.count - 1 and not self.complete:
            self._extend()
        window = self._windows.get(micro_batch + 1)
        if window is not None:
            self._untold[window.first] -= 1
            if not self._untold[window.first]:
                del self._untold[window.first], self._windows[window.first]
        return window

    def finish(self) -> None:
        """After the run: no data is left over.

        Raises:
            DataError: this rank has more data than the first stage.
        """
        prefetcher, route = self._prefetcher, self._route
        if prefetcher is None or route.reads_inputs or not self._data_ended:
            return
        if prefetcher.is_empty and not prefetcher.ended:
            self._fetch(prefetcher)
        if not prefetcher.is_empty:
            raise DataError(
                f"the data of stage 0 ended after {self._before + self.count} micro-batches, "
                f"that of stage {route.last} has more"
            )

    def _take(self, prefetcher: Prefetcher, micro_batch: int) -> dict[Place, Any]:
        """What has been fetched of the next micro-batch."""
        if prefetcher.is_empty:
            self._fetch(prefetcher)
        number = self._before + micro_batch
        if prefetcher.is_empty:
            raise DataError(
                f"the data of {self._rank} ended after {number} micro-batches, that of stage 0 "
                "has more"
            )
        fetched = prefetcher.take()
        if self._route.reads_labels:
            self._labels[micro_batch] = fetched.note
        if not self._route.reads_inputs and fetched.note.digests != self.note(micro_batch).digests:
            digests = {0: self.note(micro_batch).digests, self._route.last: fetched.note.digests}
            if (different := difference(digests, number)) is not None:
                different.agreed = False  # this rank alone knows
                raise different
        values = dict(fetched.values())
        if prefetcher.is_empty and prefetcher.one_by_one:
            self._fetch(prefetcher)
        return values

    def _extend(self) -> None:
        """Get the next window."""
        if self._route.told_at is None:
            assert self._prefetcher is not None
            known = self.count - self._taken  # a plan may ask for more before it loads them
            if len(self._prefetcher.waiting) <= known:
                self._fetch(self._prefetcher, known + 1)
            most = None if self._limit is None else self._limit - self.count
            window = window_of(self._prefetcher, self.count, most, known)
        else:
            assert self.receive is not None
            self._phases.phase(
                f"the window with micro-batch {self._before + self.count}",
                waits_for=f"stage {self._route.told_at - 1}",
            )
            window = self.receive()
        self._take_in(window)
        if self._route.tells_at:
            self._windows[window.first] = window
            self._untold[window.first] = len(self._route.tells_at)

    def _fetch(self, prefetcher: Prefetcher, least: int = 1) -> None:
        self._phases.phase(FETCHING, waits_for="", patient=True)
        prefetcher.fetch(least)
        if self._exact and prefetcher.ended and self._limit is not None:
            needed = self._before + self._limit
            if prefetcher.count < needed:
                raise DataError(
                    f"the data of {self._rank} ended after {prefetcher.count} micro-batches, "
                    f"needed {needed}"
                )
        self._phases.phase(FETCHING, waits_for="")

    def _take_in(self, window: Window) -> None:
        self._notes.update(enumerate(window.notes, start=window.first))
        self.count = window.stop
        self._data_ended = window.ended
        within = self._limit is None or self.count < self._limit
        self.complete = window.ended or not within
        if self.complete and within and self._limit is not None:
            self._ended(self.count)
