"""Ranks that do not do the same: told at once, by name, and what can go on goes on."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from runtime import Evaluator
from runtime.testing import run_threads
from tests.support.models_for_tests import batches, mlp, one_process
from tests.support.ranks import Said, attempt, run_ranks

TIMEOUT = 45.0
"""Seconds: whoever is told only then has waited too long, for the patience of the tests."""

DATA = batches([2, 3, 1])
LOSSES = one_process(mlp(), DATA)[1]


def evaluator(**options: Any) -> Evaluator:
    options = {"loss_fn": nn.functional.mse_loss, "partition": "uniform"} | options
    return Evaluator(mlp(), timeout=TIMEOUT, **options)


def losses(made: Evaluator) -> list[float]:
    return list(made.evaluate(DATA).losses)


def evaluate_in_another_order(directory: Path) -> list[Said]:
    """With two evaluators: new ones, and such as are connected already."""
    first, second = evaluator(), evaluator()
    mine, other = (first, second) if dist.get_rank() == 0 else (second, first)
    said = [attempt(lambda: losses(mine))]
    said += [attempt(lambda made=made: losses(made)) for made in (first, second)]
    said.append(attempt(lambda: losses(other)))
    said += [attempt(lambda made=made: losses(made)) for made in (first, second)]
    saves = dist.get_rank() == 0
    said.append(
        attempt(lambda: first.save_state_dict(directory) if saves else losses(first)),
    )
    said.append(
        attempt(lambda: first.save_state_dict(directory) if saves else losses(second)),
    )
    said += [attempt(lambda made=made: losses(made)) for made in (first, second)]
    return said


def test_evaluators_used_in_another_order_are_told_at_once_and_go_on(tmp_path):
    one, other = run_ranks(2, evaluate_in_another_order, tmp_path)
    assert one == other
    right = Said(value=LOSSES)
    rule = "all stages have to do the same in the same order: "
    crossed = [
        "stage 0 began the evaluation of evaluator 1, stage 1 began the evaluation of evaluator 2",
        "stage 0 began the evaluation of evaluator 2, stage 1 began the evaluation of evaluator 1",
        "stage 0 began save_state_dict of evaluator 1, stage 1 began the evaluation of evaluator 1",
        "stage 0 began save_state_dict of evaluator 1, stage 1 began the evaluation of evaluator 2",
    ]
    wrong = [Said("AgreementError", rule + text) for text in crossed]
    assert one == [wrong[0], right, right, wrong[1], right, right, *wrong[2:], right, right]


def test_stages_in_memory_that_do_different_things_are_told_so(tmp_path):
    layers = mlp()

    def stage(end: Any) -> list[Said]:
        made = Evaluator(layers, loss_fn=nn.functional.mse_loss, transport=end)
        saves = end.rank == 1
        said = attempt(lambda: made.save_state_dict(tmp_path) if saves else losses(made))
        return [said, attempt(lambda: losses(made))]

    wrong = Said(
        "AgreementError",
        "all stages have to do the same in the same order: stage 0 began the evaluation of "
        "evaluator 1, stage 1 began save_state_dict of evaluator 1",
    )
    assert run_threads(2, stage) == [[wrong, Said(value=LOSSES)]] * 2


WAYS = ("ends", "raises", "closes", "drops", "dies")


def leave(how: str, *, connected: bool) -> list[Said] | None:
    """Stage 1 leaves in some way, and stage 0 evaluates."""
    made = evaluator()
    if connected:
        losses(made)
    if dist.get_rank() == 0:
        return [attempt(lambda: losses(made)) for _ in range(2)]
    if how == "raises":
        raise ArithmeticError("outside of any evaluation")
    if how == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "closes":
        made.close()
    if how == "drops":
        del made
    if how in ("closes", "drops"):
        dist.recv(torch.zeros(1), 0)  # which never comes, but stage 0 ends
    return None


def leave_at_once(how: str) -> list[Said] | None:
    return leave(how, connected=False)


def leave_later(how: str) -> list[Said] | None:
    return leave(how, connected=True)


@pytest.mark.parametrize("function", [leave_at_once, leave_later])
@pytest.mark.parametrize("how", WAYS)
def test_who_is_left_alone_is_told_by_whom(how, function):
    first, again = run_ranks(2, function, how)[0]
    for said in (first, again):
        assert said.error == "LostPeerError"
        assert said.text.startswith("stage 1 ")
    if how == "closes":
        assert first.text == (
            "stage 1 will not take part in the evaluation of evaluator 1, and never again: "
            "stage 1 closed it"
        )
    if how == "dies" and function is leave_at_once:
        assert "stage 1 ended its process" in first.text
