"""Several stages on a rank, in processes: through shared memory, over gloo, and with a lost one."""

import os
from typing import Any

import pytest
import torch
from torch import nn

from runtime import Evaluator, LostPeerError
from runtime.transport import Channels
from tests.support.models_for_tests import Data, batches, mlp, one_process
from tests.support.own_schedules import Listed
from tests.support.ranks import attempt, run_ranks

DATA = batches([1 + m % 3 for m in range(70)])
SETUPS: list[dict[str, Any]] = [
    {"schedule": "interleaved", "stages": 6, "overlap": True},
    {"schedule": "v_shape", "stages": 4, "overlap": False},
    {"schedule": Listed((1, 0, 1, 1, 0), 3), "stages": 5, "overlap": True},
]
WAYS: tuple[Channels, ...] = ("memory", "shared", "per-edge")


def evaluate(data: Data) -> list[Any]:
    """Losses and logits of every setup over all kinds of channels."""
    found = []
    for channels in WAYS:
        for setup in SETUPS:
            options = setup | {"loss_fn": nn.functional.mse_loss, "partition": "uniform"}
            with Evaluator(mlp(8), channels=channels, timeout=30.0, **options) as ev:
                result = ev.evaluate(iter(data), return_logits=True, logits_to="all")
                found.append((result.losses, [y.tolist() for y in result.logits or ()]))
                again = ev.eval_batch(iter(data[:3]), num_micro_batches=3)
                found.append((again.losses, []))
    return found


def test_two_processes_give_what_one_gives(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the processes
    try:
        logits, losses = one_process(mlp(8), DATA)
    finally:
        torch.set_num_threads(threads)
    for answer in run_ranks(2, evaluate, DATA):
        assert isinstance(answer, list), answer
        assert len(answer) == 2 * len(WAYS) * len(SETUPS)
        for whole, three in zip(answer[::2], answer[1::2], strict=True):
            assert list(whole[0]) == losses
            assert whole[1] == [y.tolist() for y in logits]
            assert list(three[0]) == losses[:3]


class Ends(nn.Module):
    """Ends its process at the micro-batch of three rows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) == 3:
            os._exit(7)
        return x


def lose_one(data: Data) -> Any:
    """What a rank is told when rank 1 ends while it forwards stage 3."""
    layers = mlp(8)
    layers[6] = Ends()
    ev = Evaluator(
        layers,
        loss_fn=nn.functional.mse_loss,
        partition="uniform",
        schedule="interleaved",
        stages=4,
        timeout=30.0,
    )
    return attempt(lambda: ev.evaluate(iter(data)))


def test_a_process_that_is_lost_is_named_with_its_stages(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", "ERROR")
    told, lost = run_ranks(2, lose_one, DATA)
    assert lost is None
    assert told.error == LostPeerError.__name__
    assert "rank 1 (stages 1 and 3) ended without a word" in told.text


@pytest.mark.nccl
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs a GPU for each of two NCCL ranks")
def test_two_gpus_take_channels_of_their_own_by_default():
    from runtime.distributed.processes import launch

    assert launch(2, _kinds, None) == ["per-edge", "per-edge"]


def _kinds(_: None) -> list[str]:
    from runtime.distributed.process_group import process_group
    from runtime.transport import TorchTransport

    with process_group() as device:
        transport = TorchTransport(device=device)
        ev = Evaluator(
            mlp(8), loss_fn=nn.functional.mse_loss, transport=transport, **SETUPS[0], timeout=30.0
        )
        ev.evaluate(iter(DATA))
        kinds: list[str] = transport.gather_objects(transport.channels)
        return kinds
