"""A patrol: a thread that visits what is on duty every so often.

It outlives what it visits. An evaluation may take less time than a thread takes to start, and on a
machine whose processors are busy every thread that wakes up takes one from a stage. So the thread
stays, and is not even woken when a duty begins.
"""

import threading
import time
from typing import Protocol

IDLE_SECONDS = 10.0
"""Without a duty for so long, the thread ends; the next duty starts another one."""

IDLE_PAUSE = 0.05
"""Seconds between two looks for a duty: nobody wakes the thread."""


class Duty(Protocol):
    """What a patrol visits."""

    pause: float
    """Seconds between two visits, and before the first."""

    def visit(self, *, asked: bool) -> None:
        """Do what there is to do; `asked`: somebody waits for it. May not raise."""


class Patrol:
    """Visits a duty from a thread of its own, again and again."""

    def __init__(self, name: str) -> None:
        """Prepare; the thread starts with the first duty and is called `name`."""
        self._name = name
        self._changed = threading.Condition()
        self._duty: Duty | None = None
        self._visiting: Duty | None = None
        self._due = 0.0
        self._running = False
        self._asked = self._accepted = self._answered = 0

    def begin(self, duty: Duty) -> None:
        """Take `duty` up, in place of any other."""
        with self._changed:
            self._duty, self._due = duty, time.monotonic() + duty.pause
            if not self._running:
                self._running = True
                threading.Thread(target=self._walk, name=self._name, daemon=True).start()

    def call(self, seconds: float) -> bool:
        """Have the duty visited now; whether a whole visit was made, within `seconds`."""
        with self._changed:
            self._asked += 1
            request = self._asked
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self._answered >= request, seconds)

    def end(self, duty: Duty, seconds: float | None = None) -> bool:
        """Lay `duty` down; whether no visit to it is under way any more, within `seconds`."""
        with self._changed:
            if self._duty is duty:
                self._duty = None
            return self._changed.wait_for(lambda: self._visiting is not duty, seconds)

    def _walk(self) -> None:
        while (duty := self._next()) is not None:
            duty.visit(asked=self._accepted > self._answered)
            with self._changed:
                self._visiting, self._answered = None, self._accepted
                self._due = time.monotonic() + duty.pause
                self._changed.notify_all()

    def _next(self) -> Duty | None:
        """The duty, as soon as it is to be visited; `None` after a long time without one."""
        idle_until = time.monotonic() + IDLE_SECONDS
        with self._changed:
            while True:
                now = time.monotonic()
                if self._duty is None:
                    if now > idle_until:
                        self._running = False
                        return None
                    self._changed.wait(IDLE_PAUSE)
                elif now < self._due and self._asked == self._answered:
                    self._changed.wait(min(self._due - now, IDLE_PAUSE))
                else:
                    self._visiting, self._accepted = self._duty, self._asked
                    return self._duty
