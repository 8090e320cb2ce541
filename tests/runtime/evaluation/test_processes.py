"""Real processes over torch.distributed: gloo always, NCCL where there are GPUs."""

import math
from itertools import chain
from typing import Any

import pytest
import torch
from torch import nn

from runtime.distributed.processes import WorkerError, launch
from runtime.transport import Channels
from tests.support.forks import launch_forks
from tests.support.models_for_tests import batches, mlp, one_process
from tests.support.workers import (
    Rounds,
    evaluate_rounds,
    evaluate_shards,
    exchange,
    fail,
    tied_layers,
)

SIZES = ((2, 2, 2, 2), (3, 1, 4), (5,), (2, 2, 2, 2))


def check_rounds(
    stages: int,
    *,
    overlap: bool,
    exactly: bool,
    channels: Channels | None = None,
    hosts: str = "",
    start: Any = launch_forks,
) -> None:
    rounds = start(stages, evaluate_rounds, Rounds(SIZES, overlap, channels, hosts))
    for sizes, results in zip(SIZES, rounds, strict=True):
        logits, losses = one_process(mlp(), batches(sizes))
        rel = 1e-12 if exactly else 1e-5
        for result in results:
            assert result.losses == pytest.approx(losses, rel=rel)
            average = sum(n * loss for n, loss in zip(sizes, losses, strict=True)) / sum(sizes)
            assert result.loss == pytest.approx(average, rel=rel)
        assert all(result.logits is None for result in results[:-1])
        for found, expected in zip(results[-1].logits, logits, strict=True):
            if exactly:
                assert torch.equal(found, expected)
            else:
                torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("overlap", "channels"),
    [(False, None), (True, None), (True, "shared"), (True, "per-edge")],
)
def test_three_processes_give_what_one_gives(overlap, channels):
    check_rounds(3, overlap=overlap, exactly=True, channels=channels)


@pytest.mark.parametrize("hosts", ["aab", "-aa"])
def test_stages_on_two_hosts_give_what_one_process_gives(hosts):
    check_rounds(3, overlap=True, exactly=True, hosts=hosts)


def test_two_replicas_of_two_stages_give_what_one_process_gives():
    sizes = ((3, 1, 4), (2,))
    results = launch_forks(4, evaluate_shards, sizes)
    layers = [layer if isinstance(layer, nn.Module) else layer.build() for layer in tied_layers()]
    whole = nn.Sequential(*layers)
    for _, state in results[:2]:
        whole.load_state_dict(state, strict=False)
    tied = [whole[1].state_dict(), whole[3].state_dict()]
    assert all(torch.equal(tied[0][name], tied[1][name]) for name in ("weight", "bias"))

    shards = [batches(own, seed=replica) for replica, own in enumerate(sizes)]
    found = [one_process(list(whole), shard) for shard in shards]
    losses = [loss for _, own in found for loss in own]
    products = (n * loss for n, loss in zip(chain(*sizes), losses, strict=True))
    average = math.fsum(products) / sum(chain(*sizes))
    for rank, (result, _) in enumerate(results):
        logits, own = found[rank // 2]
        assert result.loss == average
        assert result.losses == tuple(own)
        assert all(map(torch.equal, result.logits, logits))


@pytest.mark.parametrize("channels", [None, "shared", "per-edge"])
def test_messages_of_many_tensors_and_collectives_arrive(channels):
    memory = channels is None
    assert launch_forks(3, exchange, channels) == [(stage, True, 1.0, memory) for stage in range(3)]


def test_a_process_that_raises_ends_the_run_with_its_error(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(WorkerError) as caught:
        launch(2, fail, "raise")
    assert str(caught.value) == "stage 1 failed: ArithmeticError: not today"
    assert "tests/support/workers.py" in caught.value.trace


def test_a_process_that_dies_ends_the_run():
    with pytest.raises(WorkerError, match="stage 1 failed: its process ended with exit status 3"):
        launch_forks(2, fail, "exit")


needs_two_gpus = pytest.mark.skipif(
    torch.cuda.device_count() < 2, reason="needs a GPU for each of two NCCL ranks"
)


@pytest.mark.nccl
@needs_two_gpus
@pytest.mark.parametrize("channels", ["shared", "per-edge"])
@pytest.mark.parametrize("overlap", [False, True])
def test_two_gpus_give_what_one_process_gives(overlap, channels):
    check_rounds(2, overlap=overlap, exactly=False, channels=channels, start=launch)


@pytest.mark.nccl
@needs_two_gpus
@pytest.mark.parametrize("channels", ["shared", "per-edge"])
def test_messages_arrive_between_gpus(channels):
    assert launch(2, exchange, channels) == [(stage, True, 1.0, False) for stage in range(2)]
