"""Listeners: who watches the interpreter, beside its loop."""

from collections import defaultdict, deque
from typing import Protocol

from runtime.device import Clock, Mark
from schemas import Placed


class Listener(Protocol):
    """Told about every instruction of a run."""

    def started(self, placed: Placed, /) -> None:
        """The instruction is about to be executed."""

    def finished(self, placed: Placed, /) -> None:
        """The instruction has been executed (on a GPU: has been enqueued)."""


class StageTimer:
    """Adds up the seconds that each kind of instruction takes on the stage's device."""

    def __init__(self, clock: Clock) -> None:
        """Measure with `clock`."""
        self._clock = clock
        self._started: Mark | None = None
        self._open: deque[tuple[str, Mark, Mark]] = deque()
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def started(self, _: Placed) -> None:
        """Note the start."""
        self._started = self._clock.mark()

    def finished(self, placed: Placed) -> None:
        """Note the end, and add up what the device has finished."""
        assert self._started is not None
        self._open.append((placed.instruction.op, self._started, self._clock.mark()))
        while self._open and self._clock.reached(self._open[0][2]):
            self._add_oldest()

    def seconds(self) -> dict[str, float]:
        """Seconds so far by `op`; waits for the device."""
        self._clock.synchronize()
        while self._open:
            self._add_oldest()
        return dict(self._seconds)

    def _add_oldest(self) -> None:
        op, start, end = self._open.popleft()
        self._seconds[op] += self._clock.seconds(start, end)
