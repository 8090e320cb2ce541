"""Keys of a store, read in few round trips: on a slow network each takes as long as a message."""

import time
from collections.abc import Sequence

from runtime.transport.private_store import AnyStore

LOOK_SECONDS = 0.1
"""How long a call looks for keys that are not there yet, one by one; the next one goes on."""


class StoreReader:
    """Reads keys of which some are not there yet; one that was there stays.

    To get a key that is missing would block. Whether *all* of several keys are there is one round
    trip, and so are the values of several that are.
    """

    def __init__(self, store: AnyStore) -> None:
        """Begin without knowing of any."""
        self._store = store
        self._present: set[str] = set()
        self._next = 0

    def read(self, keys: Sequence[str]) -> dict[str, bytes]:
        """The values of those of `keys` that are found.

        Raises:
            RuntimeError: the store is gone.
        """
        absent = [key for key in keys if key not in self._present]
        if absent and self._store.check(absent):
            self._present.update(absent)
        elif len(absent) > 1:
            self._look_for(absent)
        there = [key for key in keys if key in self._present]
        if there and self._store.has_extended_api():  # type: ignore[union-attr]
            return dict(zip(there, self._store.multi_get(there), strict=True))
        return {key: self._store.get(key) for key in there}

    def _look_for(self, absent: Sequence[str]) -> None:
        until = time.monotonic() + LOOK_SECONDS
        for _ in absent:
            self._next += 1
            key = absent[self._next % len(absent)]
            if self._store.check([key]):
                self._present.add(key)
            if time.monotonic() > until:
                return
