"""The stream of micro-batches through a run: which there are, and what all stages know of them.

The first stage fetches micro-batches while the pipeline runs, in *windows* of as many as are there.
A window is told to the stages behind it ahead of the activation of its first micro-batch::

    channel 0 -> 1    ... activation 7 | window 8..11 | activation 8 | activation 9 ...

A stage takes it in when it first asks for a micro-batch beyond the window before, and hands it on
as soon as it has sent the activation ahead of it. The first window of a run is agreed on by all
stages before it. A window that is the last one says so, and what the plan has for micro-batches
that do not exist is left out: a plan without some whole micro-batches is as sound as it was.
"""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from runtime.failure.fingerprint import difference
from runtime.messages import post_object, receive_object
from runtime.micro_batches import DataError, Note, Prefetcher
from runtime.ownership import Take, fresh
from runtime.transport.protocol import Pending, Transport
from schemas import Place

FETCHING = "the drawing of micro-batches"
"""What a stage is at, for reports of failures."""

UNDER_WAY = 16
"""Micro-batches ahead of a new window of which notes are kept: a stage is still at some of them."""


@dataclass(frozen=True)
class Window:
    """Micro-batches that the first stage has fetched."""

    first: int
    notes: tuple[Note, ...]
    ended: bool
    """Whether there are no more."""

    @property
    def stop(self) -> int:
        """The number of the micro-batch after the last one."""
        return self.first + len(self.notes)


class Progress(Protocol):
    """Told what a stage does where no instruction says it."""

    def phase(self, at: str, *, waits_for: str = ..., patient: bool = False) -> None:
        """The stage is at something that may take long."""


def window_of(prefetcher: Prefetcher, first: int, most: int) -> Window:
    """What has been fetched, from micro-batch `first` on, and no more than `most`."""
    waiting = prefetcher.waiting[:most]
    ended = prefetcher.ended and len(waiting) == len(prefetcher.waiting)
    return Window(first, tuple(waiting), ended)


class Stream:
    """The micro-batches of one run, as one stage sees them."""

    def __init__(
        self,
        transport: Transport,
        window: Window,
        limit: int,
        prefetcher: Prefetcher | None,
        progress: Progress,
        *,
        take: Take = fresh,
        before: int = 0,
        exact: bool = False,
        ended: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Begin with the window that all stages have agreed on.

        Args:
            transport: Connection to the other stages.
            window: The first window.
            limit: The number of micro-batches of the plan: the run has no more.
            prefetcher: Of this stage's own data, if it reads any.
            progress: Told when the stage fetches, or waits for a window.
            take: Gives memory for messages.
            before: Micro-batches of the data that came before this run.
            exact: Whether the data has to last for the whole plan.
            ended: Told the number of micro-batches, if they are fewer than the plan's.
        """
        self._transport, self._progress, self._before = transport, progress, before
        self._first = transport.stage_id == 0
        self._last = transport.stage_id == transport.stages - 1
        self._limit, self._prefetcher = limit, prefetcher
        self._take, self._exact, self._ended = take, exact, ended
        self._notes: dict[int, Note] = {}
        self._to_hand_on: deque[Window] = deque()
        self._handed_on: deque[tuple[Window, list[Pending]]] = deque()
        self._sent = 0
        self._data_ended = False
        self.before_window: Callable[[], None] = lambda: None
        """Called before a window is received."""
        self.count = 0
        """Micro-batches that are known to exist."""
        self.complete = False
        """Whether there are no others."""
        self._labels: dict[int, Note] = {}
        self._take_in(window)

    def has(self, micro_batch: int) -> bool:
        """Whether a micro-batch exists; waits until that is known.

        Raises:
            DataError: this stage's data is damaged, or has another length than that of the first.
        """
        while micro_batch >= self.count and not self.complete:
            self._extend()
        return micro_batch < self.count

    def note(self, micro_batch: int) -> Note:
        """What the first stage knows of one of the latest micro-batches."""
        return self._notes[micro_batch]

    def label_note(self, micro_batch: int) -> Note:
        """What this stage knows of one of the latest micro-batches that it has loaded."""
        return self._labels[micro_batch]

    def kind(self, micro_batch: int) -> str:
        """What the inputs of one of the latest micro-batches look like."""
        return self._notes[micro_batch].kind

    def load(self, micro_batch: int) -> Mapping[Place, Any]:
        """The values that this stage reads of the next micro-batch.

        Raises:
            DataError: this stage's data has ended, or is not that of the first stage.
        """
        prefetcher = self._prefetcher
        if prefetcher is None:
            return {}
        if prefetcher.is_empty:
            self._fetch(prefetcher)
        number = self._before + micro_batch
        if prefetcher.is_empty:
            raise DataError(
                f"the data of stage {self._transport.stage_id} ended after {number} micro-batches, "
                "that of stage 0 has more"
            )
        fetched = prefetcher.take()
        self._labels[micro_batch] = fetched.note
        self._labels.pop(micro_batch - UNDER_WAY, None)
        if not self._first and fetched.note.digests != self.note(micro_batch).digests:
            said = {
                0: self.note(micro_batch).digests,
                self._transport.stage_id: fetched.note.digests,
            }
            if (different := difference(said, number)) is not None:
                different.agreed = False  # this stage alone knows
                raise different
        values = fetched.values()
        if prefetcher.is_empty and prefetcher.one_by_one:
            self._fetch(prefetcher)
        return values

    def sent(self, micro_batch: int) -> None:
        """The sending of a micro-batch's activation has begun."""
        self._sent = micro_batch + 1
        self._hand_on()

    def arrived(self, micro_batch: int) -> None:
        """The activation of a micro-batch has arrived, and so has what went ahead of it."""
        while self._handed_on and self._handed_on[0][0].first <= micro_batch:
            for pending in self._handed_on.popleft()[1]:
                self._transport.wait(pending)

    def finish(self) -> None:
        """After the run: what was handed on has arrived, and no data is left over.

        Raises:
            DataError: this stage has more data than the first one.
        """
        self.arrived(self.count)
        prefetcher = self._prefetcher
        if self._last and not self._first and prefetcher is not None and self._data_ended:
            if prefetcher.is_empty and not prefetcher.ended:
                self._fetch(prefetcher)
            if not prefetcher.is_empty:
                raise DataError(
                    f"the data of stage 0 ended after {self._before + self.count} micro-batches, "
                    f"that of stage {self._transport.stage_id} has more"
                )

    def _extend(self) -> None:
        """Get the next window."""
        if self._first:
            assert self._prefetcher is not None
            if self._prefetcher.is_empty:
                self._fetch(self._prefetcher)
            window = window_of(self._prefetcher, self.count, self._limit - self.count)
        else:
            self.before_window()  # what goes ahead of it on the channel
            before = self._transport.stage_id - 1
            self._progress.phase(
                f"the announcement of micro-batch {self._before + self.count}",
                waits_for=f"stage {before}",
            )
            window = receive_object(self._transport, before)
        self._take_in(window)
        if not self._last:
            self._to_hand_on.append(window)
            self._hand_on()

    def _fetch(self, prefetcher: Prefetcher) -> None:
        self._progress.phase(FETCHING, waits_for="", patient=True)
        prefetcher.fetch()
        if self._exact and prefetcher.ended and self._before + self._limit > prefetcher.count:
            raise DataError(
                f"the data of stage {self._transport.stage_id} ended after {prefetcher.count} "
                f"micro-batches, needed {self._before + self._limit}"
            )
        self._progress.phase(FETCHING, waits_for="")

    def _take_in(self, window: Window) -> None:
        self._notes.update(enumerate(window.notes, start=window.first))
        while (oldest := next(iter(self._notes), window.first)) < window.first - UNDER_WAY:
            del self._notes[oldest]
        self.count = window.stop
        self._data_ended = window.ended
        self.complete = window.ended or self.count >= self._limit
        if self.complete and self.count < self._limit:
            self._ended(self.count)

    def _hand_on(self) -> None:
        while self._to_hand_on and self._sent >= self._to_hand_on[0].first:
            window = self._to_hand_on.popleft()
            after = self._transport.stage_id + 1
            pending = post_object(self._transport, window, after, self._take)
            self._handed_on.append((window, pending))
