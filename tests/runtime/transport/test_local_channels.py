"""Which stages have channels through shared memory, and how they are made, ended and made anew."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from queue import SimpleQueue
from typing import Any

import pytest
import torch

from runtime.transport.shared_memory import channels as channels_module
from runtime.transport.shared_memory.channels import LocalChannels
from runtime.transport.shared_memory.endpoint import LocalChannelError
from runtime.transport.shared_memory.segments import supported
from schemas import Direction

pytestmark = pytest.mark.skipif(not supported(), reason="needs memfd_create(2)")

SOON = timedelta(seconds=30)


class Wire:
    """Exchanges bytes between threads that stand for stages."""

    def __init__(self) -> None:
        self._queues: dict[tuple[int, int], SimpleQueue[bytes]] = {
            (a, b): SimpleQueue() for a in range(4) for b in range(4)
        }

    def exchange(self, here: int, peer: int, data: bytes) -> bytes:
        self._queues[here, peer].put(data)
        return self._queues[peer, here].get(timeout=SOON.total_seconds())


def opened(size: int, keys: list[str]) -> list[LocalChannels]:
    """The channels of a chain of stages on hosts with these keys."""
    wire = Wire()

    def stage(here: int) -> LocalChannels:
        local = LocalChannels(active=True)
        local._key = keys[here]
        wanted = [(Direction.RECV, here - 1)] * (here > 0)
        wanted += [(Direction.SEND, here + 1)] * (here < size - 1)
        for direction, peer in wanted:
            local.open(direction, peer, SOON, lambda s, peer=peer: wire.exchange(here, peer, s))
        local.open_collectives(here, size, SOON, lambda peer, data: wire.exchange(here, peer, data))
        return local

    with ThreadPoolExecutor(size) as pool:
        return [
            f.result(SOON.total_seconds()) for f in [pool.submit(stage, n) for n in range(size)]
        ]


def test_stages_of_one_host_agree_through_a_coordinator():
    stages = opened(3, ["here"] * 3)
    own = [torch.full((5,), n, dtype=torch.uint8) for n in range(3)]

    def gather(here: int) -> list[torch.Tensor]:
        collectives = stages[here].collectives
        assert collectives is not None
        return collectives.all_gather(own[here])

    with ThreadPoolExecutor(3) as pool:
        for found in pool.map(gather, range(3)):
            assert all(map(torch.equal, found, own))


def test_stages_of_other_hosts_have_no_channel_through_memory():
    stages = opened(3, ["here", "here", "there"])
    assert [list(stage.ends) for stage in stages] == [
        [(Direction.SEND, 1)],
        [(Direction.RECV, 0)],
        [],
    ]
    assert all(stage.collectives is None for stage in stages)


def test_a_stage_that_cannot_connect_has_no_channel_and_says_so(monkeypatch):
    monkeypatch.setattr(channels_module, "connect", lambda _: None)
    stages = opened(2, ["here"] * 2)
    assert all(not stage.ends and stage.collectives is None for stage in stages)


def test_abandoned_channels_end_waits_and_new_ones_begin_afresh():
    first, second = opened(2, ["here"] * 2)
    end: Any = second.ends[Direction.RECV, 0]
    received = end.begin([torch.empty(1, dtype=torch.uint8)])
    first.abandon()
    with pytest.raises(LocalChannelError):
        received.wait()
    for local in (first, second):
        local.clear()
        assert not local.ends
        assert local.collectives is None
