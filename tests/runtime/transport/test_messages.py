"""What processes on several hosts send each other is read without pickle."""

import pickle
from typing import Any, NoReturn

import pytest
import torch
from torch import nn

from runtime import Evaluator
from runtime.tensors import decoding
from tests.support.models_for_tests import batches
from tests.support.ranks import run_ranks


class Pairs(nn.Module):
    """Makes tuples, whose structure travels with them."""

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        return {"x": x, "twice": (2 * x, "text", 3)}


class Sum(nn.Module):
    """Takes them."""

    def forward(self, pairs: dict[str, Any]) -> torch.Tensor:
        x: torch.Tensor = pairs["x"] + pairs["twice"][0]
        return x


def evaluate_without_pickle(directory: str) -> tuple[float, int]:
    """Everything that ranks do together, where reading pickle is an error."""

    def refuse(*_: object, **__: object) -> NoReturn:
        raise AssertionError("pickle was read")

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((pickle, "loads"), (pickle, "load"), (decoding, "_Unpickler")):
            patch.setattr(owner, name, refuse)
        torch.manual_seed(1)
        with Evaluator(
            [nn.Linear(4, 6), Pairs(), Sum(), nn.Linear(6, 6)],
            loss_fn=nn.functional.mse_loss,
            metrics={"l1": nn.functional.l1_loss},
            partition="uniform",
            channels="shared",
            check_finite=True,
            timeout=30.0,
        ) as evaluator:
            evaluator.save_state_dict(directory)
            evaluator.load_state_dir(directory)
            data = batches([2, 1, 3])
            evaluator.eval_batch(iter(data), num_micro_batches=3, reduce_output="sum")
            kept = evaluator.evaluate(iter(data), return_logits=True, logits_to="all")
        with Evaluator(
            [nn.Linear(4, 6), nn.Linear(6, 6)], loss_fn=nn.functional.mse_loss, channels="shared"
        ) as windows:
            loss = windows.evaluate(iter(batches([2] * 300))).loss
        assert kept.logits is not None
        return loss, len(kept.logits)


def test_ranks_read_no_pickle_over_gloo(tmp_path):
    first, second = run_ranks(2, evaluate_without_pickle, str(tmp_path))
    assert isinstance(first, tuple), first
    assert first == second
    assert first[1] == 3
