"""The form of the plans is the caller's choice, or measured: the same on all stages."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from runtime.form import REPEATS, FormChoice, Trial
from runtime.transport import InMemoryTransport, run_stages
from schemas import PostRecvActivation, PostSendActivation, RecvActivation, SendActivation
from tests.models_for_tests import batches, over_stages
from tests.test_evaluator import eval_batch


class Seen:
    """A listener that notes which instructions ran."""

    def __init__(self) -> None:
        self.kinds: set[type] = set()

    def started(self, placed: Any) -> None:
        self.kinds.add(type(placed.instruction))

    def finished(self, placed: Any) -> None:
        pass


@pytest.mark.parametrize("slower", [True, False])
def test_the_form_that_was_faster_runs_on_all_stages(slower, monkeypatch):
    def seconds(_self: FormChoice, _trial: Trial, interpreter: Any) -> float:
        overlapped = "PostSend" in repr(interpreter.plan) or "PostRecv" in repr(interpreter.plan)
        return 2.0 if overlapped is slower else 1.0

    monkeypatch.setattr(FormChoice, "_seconds", seconds)
    seen = Seen()
    data = batches([2, 2, 2])
    over_stages(2, lambda ev: eval_batch(ev, data), overlap="auto", listeners=[seen])
    assert ({SendActivation, RecvActivation} <= seen.kinds) is slower
    assert ({PostSendActivation, PostRecvActivation} <= seen.kinds) is not slower


def test_shapes_that_were_measured_are_not_measured_again(monkeypatch):
    calls: list[int] = []
    monkeypatch.setattr(
        FormChoice, "_seconds", lambda _self, trial, _: calls.append(len(trial.inputs)) or 0.0
    )

    def call(ev: Any) -> None:
        for sizes in ([2, 2], [2, 2, 2], [3, 2]):
            eval_batch(ev, batches(sizes))

    over_stages(2, call, overlap="auto")
    assert len(calls) == 2 * 2 * 2 * REPEATS  # stages, shapes in front, forms
    assert set(calls) == {2}


def test_measuring_uses_copies_and_leaves_the_data_alone():
    data = batches([2, 2, 2])
    before = [inputs.clone() for inputs, _ in data]

    def layers() -> list[torch.nn.Module]:
        torch.manual_seed(0)
        return [torch.nn.Linear(4, 6), torch.nn.ReLU(inplace=True), torch.nn.Linear(6, 6)]

    found = over_stages(2, lambda ev: eval_batch(ev, data).losses, overlap="auto", layers=layers)
    same = over_stages(2, lambda ev: eval_batch(ev, data).losses, overlap=True, layers=layers)
    assert all(torch.equal(a, b) for a, (b, _) in zip(before, data, strict=True))
    assert len(found[0]) == len(same[0]) == 3


def test_what_is_no_form_is_refused():
    def stage(end: InMemoryTransport) -> None:
        FormChoice("fast", end)  # type: ignore[arg-type]

    with pytest.raises(ValueError, match="overlap is 'fast', needed True, False or 'auto'"):
        run_stages(1, stage)


def test_one_stage_has_nothing_to_measure(monkeypatch):
    def never(*_: Any) -> Iterator[None]:
        raise AssertionError("measured")

    monkeypatch.setattr(FormChoice, "_measure", never)
    over_stages(1, lambda ev: eval_batch(ev, batches([1])), overlap="auto")
