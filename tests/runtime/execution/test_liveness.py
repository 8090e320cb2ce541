"""Values are let go after their last read, so memory does not grow with M."""

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import nn

import schedcc
from runtime.execution.liveness import last_reads
from schemas import ForwardPass, Place, SendActivation, WaitSendActivation
from tests.support.models_for_tests import over_stages


@pytest.mark.parametrize(("overlap", "end"), [(False, SendActivation), (True, WaitSendActivation)])
def test_inputs_live_until_their_forward_and_outputs_until_they_are_sent(overlap, end):
    plan = schedcc.compile_pipeline(5, 3, overlap=overlap).stage(1)
    for placed, last in zip(plan.program.placed(), last_reads(plan), strict=True):
        expected: tuple[Place, ...] = ()
        if isinstance(placed.instruction, ForwardPass):
            expected = (Place.INPUT,)
        elif isinstance(placed.instruction, end):
            expected = (Place.OUTPUT,)
        assert last == expected


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
