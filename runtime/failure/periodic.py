"""A patrol: a thread that visits what is on duty every so often.

It outlives what it visits. An evaluation may take less time than a thread takes to start, and on a
machine whose processors are busy every thread that wakes up takes one from a stage. So the thread
stays, and is not even woken when a duty begins. It ends with its patrol, or when idle for long.
"""

import threading
import time
import weakref
from typing import Protocol

IDLE_SECONDS = 10.0
"""Without a duty for so long, the thread ends; the next duty starts another one."""

IDLE_PAUSE = 0.05
"""Seconds between two looks for a duty, or for the end: nobody wakes the thread."""


class Duty(Protocol):
    """What a patrol visits."""

    pause: float
    """Seconds between two visits, and before the first."""

    def visit(self, *, asked: bool) -> None:
        """Do what there is to do; `asked`: somebody waits for it. May not raise."""


class Patrol:
    """Visits a duty from a thread of its own, again and again.

    The thread ends soon after the patrol was let go of: it knows only what the patrol shares with
    it, and holds no duty that was laid down.
    """

    def __init__(self, name: str) -> None:
        """Prepare; the thread starts with the first duty and is called `name`."""
        self._name = name
        self._shared = _Shared()
        # Without its lock, since a patrol may be let go of anywhere.
        weakref.finalize(self, setattr, self._shared, "over", True).atexit = False

    def begin(self, duty: Duty) -> None:
        """Take `duty` up, in place of any other."""
        shared = self._shared
        with shared.changed:
            shared.duty, shared.due = duty, time.monotonic() + duty.pause
            if shared.thread is None:
                walk = threading.Thread(target=_walk, args=(shared,), name=self._name, daemon=True)
                shared.thread = walk
                walk.start()

    def call(self, seconds: float) -> bool:
        """Have the duty visited now; whether a whole visit was made, within `seconds`."""
        shared = self._shared
        with shared.changed:
            shared.asked += 1
            request = shared.asked
            shared.changed.notify_all()
            return shared.changed.wait_for(lambda: shared.answered >= request, seconds)

    def end(self, duty: Duty, seconds: float | None = None) -> bool:
        """Lay `duty` down; whether no visit to it is under way any more, within `seconds`."""
        shared = self._shared
        with shared.changed:
            if shared.duty is duty:
                shared.duty = None
            return shared.changed.wait_for(lambda: shared.visiting is not duty, seconds)

    def close(self, seconds: float) -> None:
        """End the thread, unless a visit takes longer than `seconds`."""
        shared = self._shared
        with shared.changed:
            shared.over, shared.duty = True, None
            shared.changed.notify_all()
            thread = shared.thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(seconds)


class _Shared:
    """What a patrol and its thread both know."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.over = False
        """Whether the thread has to end."""
        self.thread: threading.Thread | None = None
        self.duty: Duty | None = None
        self.visiting: Duty | None = None
        self.due = 0.0
        self.asked = self.accepted = self.answered = 0


def _walk(shared: _Shared) -> None:
    while _is_on_duty(shared):
        duty = shared.visiting
        assert duty is not None
        duty.visit(asked=shared.accepted > shared.answered)
        with shared.changed:
            shared.visiting, shared.answered = None, shared.accepted
            shared.due = time.monotonic() + duty.pause
            shared.changed.notify_all()
        del duty  # who lays it down lets go of all that it knows


def _is_on_duty(shared: _Shared) -> bool:
    """Wait until a duty is to be visited; not if there is none for a long time, or never again."""
    idle_until = time.monotonic() + IDLE_SECONDS
    with shared.changed:
        while True:
            now = time.monotonic()
            if shared.over or (shared.duty is None and now > idle_until):
                shared.thread = None
                return False
            if shared.duty is None:
                shared.changed.wait(IDLE_PAUSE)
            elif now < shared.due and shared.asked == shared.answered:
                shared.changed.wait(min(shared.due - now, IDLE_PAUSE))
            else:
                shared.visiting, shared.accepted = shared.duty, shared.asked
                return True
