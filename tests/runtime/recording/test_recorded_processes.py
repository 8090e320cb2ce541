"""Recordings of real processes: what a killed stage leaves behind names it."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from runtime import Evaluator
from runtime.distributed.process_group import process_group
from runtime.distributed.processes import WorkerError
from runtime.transport import TorchTransport
from schedcc import compile_pipeline
from schedcc.recordings.conform import conform
from schedcc.recordings.files import read_recording
from schedcc.recordings.postmortem import postmortem
from schemas.reports.postmortem import RankState
from tests.support.forks import launch_forks
from tests.support.models_for_tests import batches, mlp
from tests.support.ranks import run_ranks
from tests.support.workers import TIMEOUT

MICRO_BATCHES = 5


class KillsItself(nn.Module):
    """Ends its process in the `last`-th forward, as the kernel does when memory runs out."""

    def __init__(self, last: int) -> None:
        super().__init__()
        self.left = last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return x


@dataclass(frozen=True)
class Recorded:
    directory: Path
    last: int
    """The forward in which the middle stage ends."""


def evaluate(recorded: Recorded) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layers = [nn.Linear(4, 6), KillsItself(recorded.last), nn.Linear(6, 6)]
    with process_group(TIMEOUT) as device:
        evaluator = Evaluator(
            layers,
            loss_fn=nn.functional.mse_loss,
            partition="uniform",
            overlap=True,
            transport=TorchTransport(device=device),
            record=recorded.directory,
        )
        evaluator.eval_batch(iter(batches([2] * MICRO_BATCHES)), num_micro_batches=MICRO_BATCHES)


def test_the_recording_of_a_killed_stage_names_it_and_its_instruction(tmp_path):
    with pytest.raises(WorkerError):
        launch_forks(3, evaluate, Recorded(tmp_path, last=3))  # in micro-batch 2
    recording = read_recording(tmp_path)
    found = postmortem(recording)
    assert found.cause is not None
    assert found.cause.ranks == (1,)
    assert "run 0, step 3: ForwardPass(micro_batch=2)" in found.cause.message
    assert found.ranks[1].state is RankState.VANISHED
    assert str(found.ranks[1].instruction) == "rank 1, step 3: ForwardPass(micro_batch=2)"
    conformance = conform(compile_pipeline(MICRO_BATCHES, 3, overlap=True), recording)
    assert conformance.ok
    assert len(conformance.notes) == 3


@dataclass(frozen=True)
class OnMesh:
    directory: Path
    dimensions: tuple[str, str]


def evaluate_on_mesh(recorded: OnMesh) -> float:
    """Four processes, two by two."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=recorded.dimensions)
    with Evaluator(
        mlp(),
        loss_fn=nn.functional.mse_loss,
        partition="uniform",
        mesh=mesh,
        record=recorded.directory,
    ) as made:
        return made.evaluate(batches([2] * MICRO_BATCHES)).loss


@pytest.mark.parametrize(
    ("dimensions", "expected"),
    [
        (("pp", "tp"), [(0, 0, "tp=0"), (0, 0, "tp=1"), (1, 0, "tp=0"), (1, 0, "tp=1")]),
        (("pp", "dp"), [(0, 0, None), (0, 1, None), (1, 0, None), (1, 1, None)]),
        (("dp", "pp"), [(0, 0, None), (1, 0, None), (0, 1, None), (1, 1, None)]),
    ],
)
def test_recordings_on_a_mesh_say_who_belongs_together(dimensions, expected, tmp_path):
    losses = run_ranks(4, evaluate_on_mesh, OnMesh(tmp_path, dimensions))
    assert all(isinstance(loss, float) for loss in losses)
    recording = read_recording(tmp_path)
    headers = [recording.ranks[rank].header for rank in range(4)]
    assert [header.rank for header in headers] == [0, 1, 2, 3]
    assert [(h.stage_id, h.replica, h.pipeline) for h in headers] == expected
    found = postmortem(recording)
    assert found.cause is None
    assert not recording.damages
    assert {rank.state for rank in found.ranks} == {RankState.CLOSED}
