"""The failure state of a run: its one failure, as the threads of one rank know it.

First a failure is *set*: from then on the main thread begins no instruction. When all ranks have
come so far, the channels are *aborted*, which ends the waits that are left. In this order, because
a channel that one end aborts while the other begins to send may lose the wait (gloo forgets a
message whose writing fails).
"""

import threading
import warnings
from collections.abc import Callable

from runtime.failure.errors import error_of
from runtime.failure.report import Failure


class FailureState:
    """Empty until a failure is known; the first one that is set stays."""

    def __init__(self, abort: Callable[[], None]) -> None:
        """Call `abort` once, to end the waits of the main thread."""
        self._abort = abort
        self._lock = threading.Lock()
        self._aborted = False
        self._known = threading.Event()
        self._acknowledged = threading.Event()
        self.failure: Failure | None = None
        """The failure that all ranks of the run raise."""
        self.reported: Failure | None = None
        """What this rank has to tell the others; they may have been faster."""

    def check(self) -> None:
        """Return if all is well.

        Raises:
            RemoteError: the run has failed.
        """
        if self.failure is not None:
            raise error_of(self.failure)

    def set(self, failure: Failure) -> None:
        """Make `failure` the run's, unless it has one."""
        with self._lock:
            if self.failure is None:
                self.failure = failure
        self._known.set()

    def abort(self) -> None:
        """End whatever the main thread waits for, or will.

        An error of the backend in doing so is a warning: the failure of the run is another one,
        and whoever calls this would take it for one of his own (of the store, say).
        """
        with self._lock:
            if self._aborted:
                return
            self._aborted = True
        try:
            self._abort()
        except Exception as error:
            warnings.warn(f"the channels could not be aborted: {error}", stacklevel=2)

    def wait(self, seconds: float) -> Failure | None:
        """The failure, as soon as there is one; `None` if there is none in time."""
        self._known.wait(seconds)
        return self.failure

    def acknowledged_by_all(self) -> None:
        """Note that every rank that can has read the failure, and end the waits."""
        self.abort()
        self._acknowledged.set()

    def wait_until_acknowledged(self, seconds: float) -> None:
        """Stay until every rank has read the failure: this process may host the store.

        Args:
            seconds: The grace period, after which nobody is waited for any more.
        """
        self._acknowledged.wait(seconds)
