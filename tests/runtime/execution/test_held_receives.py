"""Receives of micro-batches that may not exist are posted when that is known."""

from typing import Any

from runtime.execution.held_receives import HeldReceives
from schemas import ForwardPass, Placed, PostRecvActivation, WaitRecvActivation


class Known:
    """A stream of which more is known whenever somebody has to know."""

    def __init__(self, count: int, total: int) -> None:
        self.count, self.total, self.asked = count, total, 0

    @property
    def complete(self) -> bool:
        return self.count == self.total

    def knows(self, micro_batch: int) -> bool:
        return micro_batch < self.count or self.complete

    def has(self, micro_batch: int) -> bool:
        while micro_batch >= self.count and not self.complete:
            self.asked += 1
            self.count = min(self.total, self.count + 4)
        return micro_batch < self.count

    def follows_receive(self, stage: int, micro_batch: int) -> bool:
        return stage == 1 and micro_batch == self.count - 1 and not self.complete


def post(micro_batch: int, stage: int = 1) -> Any:
    found = PostRecvActivation(stage=stage, micro_batch=micro_batch, buffer=0, peer=stage - 1)
    return Placed(0, 0, found), micro_batch, None


def wait(micro_batch: int, stage: int = 1) -> WaitRecvActivation:
    return WaitRecvActivation(stage=stage, micro_batch=micro_batch, buffer=0, peer=stage - 1)


def held(stream: Known) -> tuple[HeldReceives, list[int]]:
    posted: list[int] = []
    known: Any = stream
    return HeldReceives(known, lambda entry: posted.append(entry[1])), posted


def test_what_is_known_to_exist_is_not_held():
    receives, _ = held(Known(count=4, total=8))
    assert not receives.take(post(3))
    assert receives.after(wait(3)) == 0


def test_the_last_one_that_is_known_brings_the_window_behind_it():
    stream = Known(count=4, total=7)
    receives, posted = held(stream)
    assert receives.take(post(4))
    assert receives.take(post(3, stage=2)), "behind one that is held, in their order"
    assert receives.take(post(7))
    assert receives.post(ForwardPass(stage=1, micro_batch=2, buffer=0)) == 0
    assert receives.after(wait(2)) == 0
    assert stream.asked == 0, "nobody was waited for"
    assert receives.after(wait(3)) == 2
    assert posted == [4, 3], "and micro-batch 7 does not exist"
    assert not receives.take(post(6))


def test_what_is_waited_for_is_posted_and_what_comes_before_it():
    stream = Known(count=4, total=20)
    receives, posted = held(stream)
    for entry in (post(4), post(3, stage=2), post(9)):
        assert receives.take(entry)
    assert receives.post(wait(3, stage=2)) == 2
    assert posted == [4, 3]
    assert stream.asked == 1
