"""A periodic thread runs a task, and outlives it."""

import threading
import time

import pytest

from runtime.failure.detection import periodic as periodic_module
from runtime.failure.detection.periodic import PeriodicThread

SOON = 30.0


class Watched:
    """A task that counts its ticks, and can hold one up."""

    def __init__(self, pause: float = 0.01) -> None:
        self.pause = pause
        self.ticks: list[bool] = []
        self.ticked = threading.Event()
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def tick(self, *, requested: bool) -> None:
        self.ticks.append(requested)
        self.ticked.set()
        assert self.may_go_on.wait(SOON)


def threads(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == name]


def test_a_task_is_run_again_and_again_until_it_is_stopped():
    thread, task = PeriodicThread("again"), Watched()
    thread.start(task)
    while len(task.ticks) < 3:
        assert task.ticked.wait(SOON)
        task.ticked.clear()
    assert thread.stop(task)
    seen = len(task.ticks)
    time.sleep(0.1)
    assert len(task.ticks) == seen
    assert not any(task.ticks)


def test_a_task_that_is_stopped_before_its_pause_is_never_run():
    thread, task = PeriodicThread("short"), Watched(pause=60.0)
    thread.start(task)
    assert thread.stop(task)
    assert not task.ticks


def test_a_tick_can_be_requested():
    thread, task = PeriodicThread("requested"), Watched(pause=60.0)
    thread.start(task)
    assert thread.run_now(SOON)
    assert task.ticks == [True]
    thread.stop(task)


def test_a_request_is_not_answered_without_a_task_or_while_a_tick_hangs():
    thread, task = PeriodicThread("hangs"), Watched()
    assert not thread.run_now(0.05)
    task.may_go_on.clear()
    thread.start(task)
    assert task.ticked.wait(SOON)
    assert not thread.run_now(0.05)
    assert not thread.stop(task, 0.05), "the tick is still under way"
    task.may_go_on.set()
    assert thread.stop(task, SOON)


def test_one_thread_serves_all_tasks_and_ends_when_there_are_none_for_long(monkeypatch):
    monkeypatch.setattr(periodic_module, "IDLE_SECONDS", 0.2)
    periodic = PeriodicThread("idle")
    for _ in range(3):
        task = Watched()
        periodic.start(task)
        assert task.ticked.wait(SOON)
        periodic.stop(task)
        assert len(threads("idle")) == 1
    (thread,) = threads("idle")
    thread.join(SOON)
    assert not thread.is_alive()
    again = Watched()
    periodic.start(again)
    assert again.ticked.wait(SOON)
    periodic.stop(again)


@pytest.mark.parametrize("late", [0.0, 0.1])
def test_a_task_that_takes_over_from_another_is_run(late):
    thread, first, second = PeriodicThread("over"), Watched(), Watched()
    thread.start(first)
    time.sleep(late)
    thread.start(second)
    assert second.ticked.wait(SOON)
    thread.stop(second)


def test_who_stops_a_task_that_raised_waits_for_nothing_and_the_next_one_runs(monkeypatch):
    raised = threading.Event()
    monkeypatch.setattr(threading, "excepthook", lambda _: raised.set())

    class Raises:
        pause = 0.0

        def tick(self, *, requested: bool) -> None:
            raise ValueError(requested)

    thread = PeriodicThread("raises")
    task = Raises()
    thread.start(task)
    assert raised.wait(SOON)
    assert thread.stop(task, SOON)
    following = Watched()
    thread.start(following)
    assert thread.run_now(SOON)
    thread.close(SOON)
