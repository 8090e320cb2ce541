"""What ranks on several hosts do in the tests; a new process imports it by name."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import nn

from runtime import Evaluator
from runtime.distributed.process_group import process_group
from runtime.transport import TorchTransport
from tests.support.models_for_tests import batches, mlp

Tell = Callable[[Any], None]

MEET = timedelta(seconds=60)
SIZES = (2, 1, 3, 2)


class Pause(nn.Module):
    """A layer that takes its time."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(0.05)
        return x


def layers() -> list[nn.Module]:
    """The same in every process."""
    return [*mlp(), Pause()]


def data() -> list[Any]:
    """The same in every process."""
    return batches(SIZES)


@dataclass(frozen=True)
class Result:
    """Of one evaluation, on one rank."""

    loss: float
    logits: list[Any] | None
    shares_memory_with: list[int]
    """Stages with which messages go through shared memory."""


def evaluate_once(overlap: bool, _tell: Tell) -> Result:
    """The loss and the logits, which are on the last stage."""
    with process_group(MEET) as device:
        transport = TorchTransport(device=device)
        with Evaluator(
            mlp(),
            loss_fn=nn.functional.mse_loss,
            partition="uniform",
            overlap=overlap,
            transport=transport,
            timeout=30.0,
        ) as evaluator:
            result = evaluator.eval_batch(iter(data()), True, num_micro_batches=len(SIZES))
            local = sorted({peer for _, peer in transport._local.ends})
        logits = result.logits and [each.tolist() for each in result.logits]
        return Result(result.loss, logits, local)


def evaluate_for_ever(timeout: float, tell: Tell) -> None:
    """Evaluate again and again, and tell the loss of each."""
    with process_group(MEET):
        evaluator = Evaluator(
            layers(), loss_fn=nn.functional.mse_loss, partition="uniform", timeout=timeout
        )
        while True:
            tell(evaluator.evaluate(iter(data())).loss)


def watch_the_process_of_rank_1(seconds: float, tell: Tell) -> bool:
    """On rank 0: whether it is known to have ended, some time after it could be reached."""
    with process_group(MEET) as device:
        ranks = TorchTransport(device=device).rendezvous
        assert ranks is not None
        if ranks.rank == 1:
            time.sleep(3600)
        until = time.monotonic() + MEET.total_seconds()
        while not (1 in ranks._registered and ranks.is_reached(1)):
            assert time.monotonic() < until, "the other process could not be reached"
            ranks.learn([1])
            assert not ranks.has_ended(1)
            time.sleep(0.01)
        tell("reached")
        until = time.monotonic() + seconds
        while not ranks.has_ended(1):
            if time.monotonic() > until:
                return False
            time.sleep(0.05)
        return True
