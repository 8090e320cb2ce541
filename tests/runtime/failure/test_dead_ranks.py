"""A process that ends without a word is missed, whatever its channels do."""

import multiprocessing
import socket
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch

from runtime.device import Clock
from runtime.failure.detection import dead_ranks
from runtime.failure.detection.heartbeat import ALL_TO_ALL_RANKS, ENDED_SECONDS, HeartbeatTask
from runtime.failure.detection.instruction_pointer import InstructionPointer
from runtime.failure.detection.periodic import PeriodicThread
from runtime.failure.state import FailureState
from runtime.failure.store import FailureStore, Heartbeat
from runtime.testing import InMemoryNetwork
from runtime.transport.peer_process import liveness_address
from runtime.transport.protocol import ConnectionLostError
from runtime.transport.rendezvous import RendezvousStore
from tests.support.forks import forks


def lives(end: Connection) -> None:
    end.send(liveness_address())
    end.recv()


def lives_elsewhere(end: Connection) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        end.send(f"another host/nobody/127.0.0.1 {listening.getsockname()[1]}")
        end.recv()


class Other:
    """A process of this host, or like one of another, and the heartbeats of its rank."""

    def __init__(self, rank: int, ranks: int, program: Callable[..., None] = lives) -> None:
        self._end, theirs = multiprocessing.Pipe()
        self.process = forks().Process(target=program, args=(theirs,))
        self.process.start()
        theirs.close()
        assert self._end.poll(60), "the process does not begin"
        address = self._end.recv()
        if not address:
            pytest.skip("processes cannot be probed here")
        self.store = InMemoryNetwork(2).store
        self._names = tuple(f"stage {n}" for n in range(ranks))
        there = RendezvousStore(self.store, rank, self._names)
        there.register(address)
        self._heartbeats, self._number = FailureStore(there, 0), 0
        self._status = InstructionPointer(lambda: None, Clock(torch.device("cpu"))).status()

    def publish(self, *, evaluating: bool = True) -> None:
        """Leave one heartbeat."""
        self._number += 1
        self._heartbeats.publish_heartbeat(
            Heartbeat(number=self._number, evaluating=evaluating, status=self._status)
        )

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def watched_by(self, rank: int) -> tuple[HeartbeatTask, FailureState]:
        """The task of another rank, which the test runs tick by tick."""
        here = RendezvousStore(self.store, rank, self._names)
        state = FailureState(lambda: None)
        pointer = InstructionPointer(state.check, Clock(torch.device("cpu")))
        thread: Any = PeriodicThread("nobody")
        return HeartbeatTask(FailureStore(here, 0), here, pointer, state, thread), state


def ticks(task: HeartbeatTask, state: FailureState, seconds: float) -> None:
    until = time.monotonic() + seconds
    while state.failure is None and time.monotonic() < until:
        task.tick(requested=True)
        time.sleep(0.01)
    if state.failure is None:  # once with all that has happened meanwhile, however busy the machine
        task.tick(requested=True)


@pytest.mark.parametrize("program", [lives, lives_elsewhere])
@pytest.mark.parametrize(("rank", "ranks"), [(1, 2), (1, ALL_TO_ALL_RANKS + 36)])
def test_a_rank_whose_process_was_killed_is_named(rank, ranks, program):
    other = Other(rank, ranks, program)
    task, state = other.watched_by(rank - 1)
    assert task.watching == (ranks == 2)
    try:
        other.publish()
        ticks(task, state, 0.8)
        assert state.failure is None, "it is silent and lives: perhaps it is only slow"
        other.kill()
        ticks(task, state, 30)
    finally:
        other.kill()
    assert state.failure is not None
    assert (state.failure.kind, state.failure.gone) == ("lost", (rank,))
    assert state.failure.reason == (
        "stage 1 ended without a word: stage 1 was at the start of the evaluation "
        "(noticed by stage 0 at the start of the evaluation)"
    )


def test_of_several_silent_ranks_the_one_whose_process_has_ended_is_named(monkeypatch):
    monkeypatch.setattr(dead_ranks, "DETECTION_SECONDS", 0.0)
    other = Other(2, 3)
    other.kill()
    task, state = other.watched_by(0)
    names = ("stage 0", "stage 1", "stage 2")
    RendezvousStore(other.store, 1, names).register(liveness_address())  # this process lives
    ranks = RendezvousStore(other.store, 0, names)
    failure = dead_ranks.lost(ConnectionLostError("send failed", 1), ranks, "step 1", task, state)
    assert failure is not None
    assert failure.gone == (2,)
    assert failure.reason.startswith("stage 2 ended without a word, or cannot be reached: send f")


@pytest.mark.parametrize("killed", [False, True])
def test_of_two_ranks_none_is_lost_because_the_store_does_not_answer(monkeypatch, killed):
    other = Other(1, 2)
    task, state = other.watched_by(0)
    other.publish()
    task.tick(requested=True)
    ranks = task._rendezvous
    ranks.learn([1])
    monkeypatch.setattr(task, "refresh", lambda _: False)  # it waits for the store
    ranks.turn.acquire()
    if killed:
        other.kill()
    try:
        failure = dead_ranks.lost(ConnectionLostError("send failed", 1), ranks, "s", task, state)
    finally:
        other.kill()
    assert failure is not None
    assert failure.gone == (1,)
    if killed:  # this host tells that much
        assert failure.kind == "lost"
        assert failure.reason.startswith("stage 1 ended without a word")
    else:
        assert failure.kind == "stalled"
        assert failure.reason.startswith("the store has not answered for ")
        assert failure.reason.endswith("is stopped or cut off; send failed (seen by stage 0 at s)")


def test_a_rank_that_has_left_the_evaluation_may_end():
    other = Other(1, 2)
    task, state = other.watched_by(0)
    other.publish()
    ticks(task, state, 0.1)
    other.publish(evaluating=False)
    other.kill()
    time.sleep(ENDED_SECONDS + 0.1)  # longer than a rank may be silent, before anybody looks
    ticks(task, state, 0.1)
    assert state.failure is None
