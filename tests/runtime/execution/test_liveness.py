"""Values are let go after their last read, so memory does not grow with M."""

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import nn

from schemas import ForwardPass, Place, Placed, SendActivation, WaitSendActivation
from tests.runtime.evaluation.test_evaluator import eval_batch
from tests.support.models_for_tests import batches, over_stages


@pytest.mark.parametrize(("overlap", "end"), [(False, SendActivation), (True, WaitSendActivation)])
def test_inputs_live_until_their_forward_and_outputs_until_they_are_sent(overlap, end):
    held: dict[type, set[tuple[int, bool, bool]]] = {}

    class Looks:
        def __init__(self, evaluator: Any) -> None:
            self.buffers = evaluator._runner._buffers

        def started(self, placed: Placed) -> None:
            self.look(placed, 0)

        def finished(self, placed: Placed) -> None:
            self.look(placed, 1)

        def look(self, placed: Placed, after: int) -> None:
            if isinstance(placed.instruction, ForwardPass | end):
                buffer = self.buffers[1, placed.instruction.buffer]
                holds = (buffer[Place.INPUT] is not None, buffer[Place.OUTPUT] is not None)
                kind = type(placed.instruction)
                held.setdefault(kind, set()).add((after, *holds))

    def call(evaluator: Any) -> None:
        if evaluator.stage_id == 1:
            evaluator._runner._setup.listeners.append(Looks(evaluator))
        eval_batch(evaluator, batches([2] * 5))

    over_stages(3, call, overlap=overlap, listeners=[])
    before, after = held[ForwardPass], held[end]
    assert {look[1] for look in before if not look[0]} == {True}
    assert {look[1] for look in before if look[0]} == {False}
    assert {look[2] for look in after if not look[0]} == {True}
    assert {look[2] for look in after if look[0]} == {False}


class Counting(nn.Module):
    """Counts how many of its outputs are alive at once, itself included."""

    def __init__(self) -> None:
        super().__init__()
        self.alive, self.most = 0, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x + 1
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(y, self.gone)
        return y

    def gone(self) -> None:
        self.alive -= 1


@pytest.mark.parametrize("overlap", [False, True])
def test_no_more_outputs_are_alive_than_there_are_buffers_whatever_m(overlap):
    made: list[Counting] = []

    def layers() -> list[nn.Module]:
        made.extend([Counting(), Counting(), Counting()])
        return list(made[-3:])

    def call(ev: Any) -> None:
        data = [(torch.zeros(2), torch.zeros(2))] * 40
        ev.eval_batch(iter(data), num_micro_batches=40)

    over_stages(3, call, layers=layers, overlap=overlap)
    gc.collect()
    assert {layer.most for layer in made} <= {0, 1, 2}
    assert max(layer.most for layer in made) > 0
    assert {layer.alive for layer in made} == {0}
