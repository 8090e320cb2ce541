"""A patrol visits its duty from a thread that outlives it."""

import threading
import time

import pytest

from runtime.failure import periodic as patrol_module
from runtime.failure.periodic import Patrol

SOON = 30.0


class Watched:
    """A duty that counts visits, and can hold one up."""

    def __init__(self, pause: float = 0.01) -> None:
        self.pause = pause
        self.visits: list[bool] = []
        self.visited = threading.Event()
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def visit(self, *, asked: bool) -> None:
        self.visits.append(asked)
        self.visited.set()
        assert self.may_go_on.wait(SOON)


def threads(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == name]


def test_a_duty_is_visited_again_and_again_until_it_ends():
    patrol, duty = Patrol("again"), Watched()
    patrol.begin(duty)
    while len(duty.visits) < 3:
        assert duty.visited.wait(SOON)
        duty.visited.clear()
    assert patrol.end(duty)
    seen = len(duty.visits)
    time.sleep(0.1)
    assert len(duty.visits) == seen
    assert not any(duty.visits)


def test_a_duty_that_is_over_before_its_pause_is_never_visited():
    patrol, duty = Patrol("short"), Watched(pause=60.0)
    patrol.begin(duty)
    assert patrol.end(duty)
    assert not duty.visits


def test_a_visit_can_be_asked_for():
    patrol, duty = Patrol("asked"), Watched(pause=60.0)
    patrol.begin(duty)
    assert patrol.call(SOON)
    assert duty.visits == [True]
    patrol.end(duty)


def test_nobody_comes_where_there_is_no_duty_or_the_visit_hangs():
    patrol, duty = Patrol("hangs"), Watched()
    assert not patrol.call(0.05)
    duty.may_go_on.clear()
    patrol.begin(duty)
    assert duty.visited.wait(SOON)
    assert not patrol.call(0.05)
    assert not patrol.end(duty, 0.05), "the visit is still under way"
    duty.may_go_on.set()
    assert patrol.end(duty, SOON)


def test_one_thread_serves_all_duties_and_ends_when_there_are_none_for_long(monkeypatch):
    monkeypatch.setattr(patrol_module, "IDLE_SECONDS", 0.2)
    patrol = Patrol("idle")
    for _ in range(3):
        duty = Watched()
        patrol.begin(duty)
        assert duty.visited.wait(SOON)
        patrol.end(duty)
        assert len(threads("idle")) == 1
    (thread,) = threads("idle")
    thread.join(SOON)
    assert not thread.is_alive()
    again = Watched()
    patrol.begin(again)
    assert again.visited.wait(SOON)
    patrol.end(again)


@pytest.mark.parametrize("late", [0.0, 0.1])
def test_a_duty_that_takes_over_from_another_is_visited(late):
    patrol, first, second = Patrol("over"), Watched(), Watched()
    patrol.begin(first)
    time.sleep(late)
    patrol.begin(second)
    assert second.visited.wait(SOON)
    patrol.end(second)
