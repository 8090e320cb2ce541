"""A periodic thread: it runs a task every so often, beside the main thread.

It outlives its tasks. An evaluation may take less time than a thread takes to start, and on a
machine whose processors are busy every thread that wakes up takes one from a rank. So the thread
stays, and is not even woken when a task is started. It ends with its owner, or when idle for long.
"""

import threading
import time
import weakref
from typing import Protocol

IDLE_SECONDS = 10.0
"""Without a task for so long, the thread ends; the next task starts another one."""

IDLE_PAUSE = 0.05
"""Seconds between two looks for a task, or for the end: nobody wakes the thread."""


class PeriodicTask(Protocol):
    """What a periodic thread runs."""

    pause: float
    """Seconds between two ticks, and before the first."""

    def tick(self, *, requested: bool) -> None:
        """Do what there is to do; `requested`: somebody waits for it. May not raise."""


class PeriodicThread:
    """Runs a task again and again, in a thread of its own.

    The thread ends soon after its owner let go of this: it knows only what is shared with it, and
    holds no task that was stopped.
    """

    def __init__(self, name: str) -> None:
        """Prepare; the thread starts with the first task and is called `name`."""
        self._name = name
        self._shared = _Shared()
        # Without its lock, since this may be let go of anywhere.
        weakref.finalize(self, setattr, self._shared, "over", True).atexit = False

    def start(self, task: PeriodicTask) -> None:
        """Run `task` from here on, in place of any other.

        Raises:
            RuntimeError: the system starts no more threads.
        """
        shared = self._shared
        with shared.changed:
            if shared.thread is None:
                thread = threading.Thread(target=_run, args=(shared,), name=self._name, daemon=True)
                thread.start()  # which may fail, and goes on when this one lets go of the lock
                shared.thread = thread
            shared.task, shared.due = task, time.monotonic() + task.pause

    def run_now(self, seconds: float) -> bool:
        """Have the task run now; whether a whole tick was made, within `seconds`."""
        shared = self._shared
        with shared.changed:
            shared.requested += 1
            request = shared.requested
            shared.changed.notify_all()
            return shared.changed.wait_for(lambda: shared.answered >= request, seconds)

    def stop(self, task: PeriodicTask, seconds: float | None = None) -> bool:
        """Run `task` no more; whether no tick of it is under way any more, within `seconds`."""
        shared = self._shared
        with shared.changed:
            if shared.task is task:
                shared.task = None
            return shared.changed.wait_for(lambda: shared.running is not task, seconds)

    def close(self, seconds: float) -> None:
        """End the thread, unless a tick takes longer than `seconds`."""
        shared = self._shared
        with shared.changed:
            shared.over, shared.task = True, None
            shared.changed.notify_all()
            thread = shared.thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(seconds)


class _Shared:
    """What a periodic thread and its owner both know."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.over = False
        """Whether the thread has to end."""
        self.thread: threading.Thread | None = None
        self.task: PeriodicTask | None = None
        self.running: PeriodicTask | None = None
        self.due = 0.0
        self.requested = self.accepted = self.answered = 0


def _run(shared: _Shared) -> None:
    try:
        while _is_due(shared):
            task = shared.running
            assert task is not None
            task.tick(requested=shared.accepted > shared.answered)
            with shared.changed:
                shared.running, shared.answered = None, shared.accepted
                shared.due = time.monotonic() + task.pause
                shared.changed.notify_all()
            del task  # who stops it lets go of all that it knows
    except BaseException:  # a fault of the task's, for which nobody may wait for ever
        with shared.changed:
            shared.thread = shared.running = None
            shared.changed.notify_all()
        raise


def _is_due(shared: _Shared) -> bool:
    """Wait until a task is to be run; not if there is none for a long time, or never again."""
    idle_until = time.monotonic() + IDLE_SECONDS
    with shared.changed:
        while True:
            now = time.monotonic()
            if shared.over or (shared.task is None and now > idle_until):
                shared.thread = None
                return False
            if shared.task is None:
                shared.changed.wait(IDLE_PAUSE)
            elif now < shared.due and shared.requested == shared.answered:
                shared.changed.wait(min(shared.due - now, IDLE_PAUSE))
            else:
                shared.running, shared.accepted = shared.task, shared.requested
                return True
