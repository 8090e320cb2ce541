"""Forced exit: the end of a process whose main thread does not come back from the device.

After a failure elsewhere, aborting the communicators normally sets the main thread free. If it is
stuck in a call of the driver all the same, no exception can reach it; then what it would have
raised is printed, and the process ends.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

from runtime.failure.report import Failure

GRACE_SECONDS = 10.0
EXIT_STATUS = 1


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclass
class ForcedExit:
    """Ends the process when a failure has been known for too long and nobody raised it."""

    grace: float = GRACE_SECONDS
    """Seconds that the main thread has to come back."""
    exit: Callable[[int], None] = os._exit
    write: Callable[[str], None] = _print
    _since: float | None = None

    def consider(self, failure: Failure, now: float) -> None:
        """Look at the clock, in a thread of its own.

        Args:
            failure: What the main thread should have raised by now.
            now: Seconds, on a clock that only goes forward.
        """
        self._since = now if self._since is None else self._since
        if now - self._since >= self.grace:
            self.write(
                f"{failure}\nschedcc: the process does not come back from its device "
                f"{self.grace:g} s after this failure, and is ended"
            )
            self.exit(EXIT_STATUS)
