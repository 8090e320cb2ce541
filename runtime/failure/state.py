"""The incident: the one failure of a run, as the threads of one rank know it.

First a failure is *settled*: from then on the main thread begins no instruction. When all ranks
have come so far, the channels are *given up*, which ends the waits that are left. In this order,
because a channel that one end gives up while the other begins to send may lose the wait (gloo
forgets a message whose writing fails).
"""

import threading
from collections.abc import Callable

from runtime.failure.report import Failure


class Incident:
    """Empty until a failure is known; the first one to be settled stays."""

    def __init__(self, give_up: Callable[[], None]) -> None:
        """Call `give_up` once, to end the waits of the main thread."""
        self._give_up = give_up
        self._lock = threading.Lock()
        self._given_up = False
        self._known = threading.Event()
        self._everyone = threading.Event()
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
            raise self.failure.exception()

    def settle(self, failure: Failure) -> None:
        """Make `failure` the run's, unless it has one."""
        with self._lock:
            if self.failure is None:
                self.failure = failure
        self._known.set()

    def give_up(self) -> None:
        """End whatever the main thread waits for, or will."""
        with self._lock:
            if self._given_up:
                return
            self._given_up = True
        self._give_up()

    def wait(self, seconds: float) -> Failure | None:
        """The failure, as soon as there is one; `None` if there is none in time."""
        self._known.wait(seconds)
        return self.failure

    def heard_by_all(self) -> None:
        """Note that every rank that can has read the failure, and end the waits."""
        self.give_up()
        self._everyone.set()

    def linger(self, seconds: float) -> None:
        """Stay until every rank has read the failure: this process may host the store."""
        self._everyone.wait(seconds)
