"""Groups that are aborted and made anew, and what is done on NCCL, with fakes in its place."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from runtime.device import Clock
from runtime.failure.detection.heartbeat import HeartbeatTask
from runtime.failure.detection.instruction_pointer import InstructionPointer
from runtime.failure.detection.periodic import PeriodicThread
from runtime.failure.detection.watchdog import Watchdog
from runtime.failure.forced_exit import ForcedExit
from runtime.failure.report import Failure
from runtime.failure.state import FailureState
from runtime.failure.store import FailureStore
from runtime.testing import InMemoryNetwork
from runtime.transport import TransportError
from runtime.transport.rendezvous import RendezvousStore
from runtime.transport.torch_distributed.channel_groups import ChannelGroups
from runtime.transport.torch_distributed.groups import process_groups as groups_module
from runtime.transport.torch_distributed.groups.point_to_point import Call, begin_together
from runtime.transport.torch_distributed.groups.process_groups import RenewableGroup
from schemas import Direction

CPU = torch.device("cpu")
MINUTE = timedelta(minutes=1)


class FakeGroup:
    """Notes what is done to it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.done: list[str] = []

    def abort(self) -> None:
        self.done.append("abort")

    def send(self, _tensors: Any, peer: int, _tag: int) -> str:
        self.done.append(f"send to {peer}")
        return f"work {len(self.done)}"

    def recv(self, _tensors: Any, peer: int, _tag: int) -> str:
        self.done.append(f"receive from {peer}")
        return f"work {len(self.done)}"

    def _start_coalescing(self, _device: torch.device) -> None:
        self.done.append("start")

    def _end_coalescing(self, _device: torch.device) -> str:
        self.done.append("end")
        return "work of all"


@pytest.fixture
def made(monkeypatch):
    """The groups that a renewable group of rank 1 of 3 makes, on a backend that says it is NCCL."""
    groups: list[FakeGroup] = []

    def new(self: RenewableGroup, name: str, rank: int, size: int) -> FakeGroup:
        groups.append(FakeGroup(f"generation {self._generation}: {name}, rank {rank} of {size}"))
        return groups[-1]

    monkeypatch.setattr(RenewableGroup, "_new", new)
    monkeypatch.setattr(groups_module, "backend_of", lambda *_: "nccl")
    monkeypatch.setattr(dist, "get_process_group_ranks", lambda _: [4, 5, 6])
    return groups


def renewable() -> RenewableGroup:
    parent: Any = SimpleNamespace(rank=lambda: 1, size=lambda: 3)
    return RenewableGroup(parent, InMemoryNetwork(1).store, CPU)


def test_all_communicators_are_aborted_together_and_made_anew_together(made):
    pipeline = renewable()
    channels = ChannelGroups(pipeline, CPU, "per-edge")
    pipeline.open(0, MINUTE)
    wanted = [(Direction.SEND, 2), (Direction.RECV, 0)]
    channels.open(wanted)
    assert [group.name for group in made] == [
        "generation 0: all, rank 1 of 3",
        "generation 0: 0 to 1, rank 1 of 2",
        "generation 0: 1 to 2, rank 0 of 2",
    ]
    assert channels.route(Direction.SEND, 2) == (made[2], 1)
    pipeline.abandon()
    assert [group.done for group in made] == [["abort"]] * 3
    assert not pipeline.is_open
    with pytest.raises(TransportError, match="aborted after a failure"):
        _ = pipeline.group
    channels.clear()
    pipeline.open(1, MINUTE)
    assert pipeline.group is made[3]
    with pytest.raises(TransportError, match="the channel to rank 2 was not connected"):
        channels.route(Direction.SEND, 2)
    channels.open(wanted)
    pipeline.abandon()
    assert [group.done for group in made] == [["abort"]] * 6


def test_a_group_that_is_aborted_while_it_is_made_is_of_no_use(made, monkeypatch):
    pipeline = renewable()
    new = RenewableGroup._new

    def interrupted(self: RenewableGroup, *where: Any) -> Any:
        group = new(self, *where)
        self.abandon()  # in another thread, in real life
        return group

    monkeypatch.setattr(RenewableGroup, "_new", interrupted)
    pipeline.open(0, MINUTE)
    assert not pipeline.is_open
    assert len(made) == 1
    with pytest.raises(TransportError, match="aborted"):
        _ = pipeline.group


class SlowStore:
    """A store to which the first connection is late."""

    def __init__(self) -> None:
        self.store: Any = InMemoryNetwork(1).store
        self.begun, self.late = threading.Event(), threading.Event()

    def clone(self) -> Any:
        if not self.begun.is_set():
            self.begun.set()
            assert self.late.wait(60)
        return self.store.clone()


def test_who_connects_late_changes_nothing_of_the_next_generation(made, monkeypatch):
    monkeypatch.undo()  # groups are made in threads
    monkeypatch.setattr(groups_module, "backend_of", lambda *_: "nccl")
    monkeypatch.setattr(dist, "get_process_group_ranks", lambda _: [4, 5, 6])

    def new_group(_kind: str, store: Any, *_: Any) -> FakeGroup:
        made.append(FakeGroup(f"group {len(made)}"))
        store.set("made", made[-1].name)
        return made[-1]

    monkeypatch.setattr(groups_module, "new_group", new_group)
    pipeline, slow = renewable(), SlowStore()
    pipeline._store = slow  # type: ignore[assignment]
    with ThreadPoolExecutor(1) as pool:
        opened = pool.submit(pipeline.open, 0, MINUTE)
        assert slow.begun.wait(60)
        pipeline.abandon()
        with pytest.raises(TransportError, match="aborted"):
            opened.result(60)
    (late,) = (thread for thread in threading.enumerate() if thread.name == "schedcc connects")
    pipeline.open(1, MINUTE)
    connection = pipeline._connection
    slow.late.set()
    late.join(60)
    assert len(made) == 2
    assert pipeline._connection is connection
    assert pipeline.group is made[0]
    assert slow.store.get("generation 1, all/made") == b"group 0"
    assert slow.store.get("generation 0, all/made") == b"group 1"
    pipeline.abandon()


def test_the_store_keeps_no_address_of_groups_that_were_abandoned(monkeypatch):
    monkeypatch.setattr(groups_module, "backend_of", lambda *_: "gloo")
    monkeypatch.setattr(dist, "get_process_group_ranks", lambda _: [0, 1])
    store, together = InMemoryNetwork(1).store, threading.Barrier(2, timeout=60)

    def keys_of_generations(rank: int) -> list[int]:
        parent: Any = SimpleNamespace(rank=lambda: rank)
        group, found = RenewableGroup(parent, store, CPU), []
        for generation in range(3):
            group.open(generation, MINUTE)
            group.edge(0, 1)
            together.wait()
            found.append(store.num_keys())
            group.abandon()
            together.wait()
        group.close()
        return found

    with ThreadPoolExecutor(2) as pool:
        for first, *later in pool.map(keys_of_generations, range(2)):
            assert first > 0
            assert later == [first, first], "gloo has another key now: see `_forget_addresses`"


def test_a_group_of_another_backend_cannot_begin_again(made, monkeypatch):
    monkeypatch.setattr(groups_module, "backend_of", lambda *_: "mpi")
    pipeline = renewable()
    pipeline.open(0, MINUTE)
    pipeline.abandon()
    with pytest.raises(TransportError, match="a group of backend mpi failed, needed one of"):
        pipeline.open(1, MINUTE)
    with pytest.raises(TransportError, match="the backend is mpi, needed one of"):
        pipeline.edge(0, 1)
    assert len(made) == 1


def test_several_transfers_are_one_operation_where_they_have_to_be():
    calls = [Call(Direction.SEND, torch.zeros(1), 2), Call(Direction.RECV, torch.zeros(1), 0)]
    nccl: Any = FakeGroup("nccl")
    assert begin_together(nccl, calls, CPU) == ["work of all"] * 2
    assert nccl.done == ["start", "send to 2", "receive from 0", "end"]
    assert begin_together(nccl, calls[:1], CPU) == ["work 5"]
    gloo: Any = FakeGroup("gloo")
    assert begin_together(gloo, calls, None) == ["work 1", "work 2"]


def test_the_watchdog_forces_the_exit_when_the_main_thread_does_not_raise():
    place = RendezvousStore(InMemoryNetwork(2).store, 0, ("stage 0", "stage 1"))
    aborted, ended = threading.Event(), threading.Event()
    written: list[str] = []
    state = FailureState(aborted.set)
    pointer = InstructionPointer(state.check, Clock(CPU))
    heartbeats = HeartbeatTask(
        FailureStore(place, 0), place, pointer, state, PeriodicThread("nobody")
    )
    last = ForcedExit(grace=0.1, exit=lambda _: ended.set(), write=written.append)
    watchdog = Watchdog(60.0, place, pointer, heartbeats, state, PeriodicThread("watch"), last)
    watchdog.start()
    try:
        assert not ended.wait(0.5)
        state.set(Failure.of(KeyError("x"), reporter=1, name="stage 1", at="step 2"))
        assert ended.wait(30)
        assert "stage 1 failed at step 2: KeyError: 'x'" in written[0]
        assert aborted.wait(30), "a heartbeats that does not answer is not waited for"
    finally:
        watchdog.stop()
