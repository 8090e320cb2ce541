"""What two ranks tell each other before a local channel connects them.

They do so through the pipeline's process group, or, where that connects nobody, through the store
that no other user of the machine reaches.
"""

import time
from collections import Counter
from functools import partial

from runtime.transport.private_store import PrivateStore
from runtime.transport.protocol import TransportError
from runtime.transport.rendezvous import JobStore
from runtime.transport.shared_memory.channels import Exchange
from runtime.transport.torch_distributed.channel_groups import ChannelGroups, Route
from runtime.transport.torch_distributed.groups.backends import UNGUARDED_TIMEOUT
from runtime.transport.torch_distributed.groups.process_groups import RenewableGroup
from schemas import Direction

_POLL_SECONDS = 0.001


class Exchanges:
    """The exchanges of one rank with any other one of its pipeline."""

    def __init__(self, pipeline: RenewableGroup, channels: ChannelGroups, job: JobStore) -> None:
        """Over the groups of `channels`, or the store of `job` if `pipeline` connects nobody."""
        self._pipeline, self._channels = pipeline, channels
        # Only where it is needed: a store of torch is a connection, which ends with the transport.
        self._shared = job.own if pipeline.is_unconnected else None
        self._store: PrivateStore | None = None
        self._numbers: Counter[int] = Counter()
        self.open(0, UNGUARDED_TIMEOUT.total_seconds())

    def open(self, generation: int, timeout: float) -> None:
        """Begin anew; a rank waits for another one for `timeout` seconds."""
        self._timeout = timeout
        self._numbers.clear()
        if self._shared is not None:
            assert isinstance(self._shared, PrivateStore)
            self._store = self._shared.part(f"exchanges of generation {generation}")

    def over(self, direction: Direction, peer: int) -> Exchange:
        """With the rank at the other end of a channel."""
        if self._store is not None:
            return partial(self._through_store, self._store, peer)
        return partial(self._channels.exchange, self._channels.route(direction, peer))

    def of(self, peer: int, message: bytes) -> bytes:
        """With any rank, whether or not there is a channel."""
        if self._store is not None:
            return self._through_store(self._store, peer, message)
        return self._channels.exchange(Route(self._pipeline.group, peer), message)

    def _through_store(self, store: PrivateStore, peer: int, message: bytes) -> bytes:
        here, number = self._pipeline.rank, self._numbers[peer]
        self._numbers[peer] += 1
        store.set(f"{here} to {peer}, {number}", message)
        key, end = f"{peer} to {here}, {number}", time.monotonic() + self._timeout
        while not store.check([key]):
            self._pipeline.require_usable()
            if time.monotonic() > end:
                raise TransportError(f"rank {peer} did not answer within {self._timeout:g} s")
            time.sleep(_POLL_SECONDS)
        answer = store.get(key)
        store.delete_key(key)
        return answer
