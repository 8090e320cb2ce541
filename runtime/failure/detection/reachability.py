"""Whether the host of who is silent takes connections: asked ahead, as it may take a second."""

import time

from runtime.transport.peer_process import PROBE_SECONDS
from runtime.transport.rendezvous import RendezvousStore


class Reachability:
    """Asks for the watchdog, and keeps the last answer for a second."""

    def __init__(self, ranks: RendezvousStore) -> None:
        """Ask hosts of `ranks`."""
        self._ranks = ranks
        self._question: frozenset[int] | None = None
        self._answer, self._answered = False, float("-inf")

    def answers(self, silent: frozenset[int] | None) -> bool:
        """Whether a connection can be made now.

        Args:
            silent: To the host of one of these ranks; `None`: to the store.
        """
        if silent != self._question or time.monotonic() - self._answered > PROBE_SECONDS:
            ranks = self._ranks
            self._answer = (
                ranks.is_connectable() if silent is None else ranks.are_connectable(silent)
            )
            self._question, self._answered = silent, time.monotonic()
        return self._answer
