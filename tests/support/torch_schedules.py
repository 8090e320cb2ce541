"""Schedules of torch.distributed.pipelining: loading them alone, running them in processes."""

import contextlib
import io
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.distributed.pipelining import PipelineStage, schedules
from torch.distributed.pipelining.schedules import _Action, _PipelineScheduleRuntime

from runtime.distributed.process_group import process_group
from runtime.modules.partition import divide
from runtime.transport import TorchTransport
from schedcc.io.exchange import read_torch_csv
from tests.support.models_for_tests import batches, mlp

TIMEOUT = timedelta(seconds=60)
FORWARD_ACTIONS = ("F", "SEND_F", "RECV_F")


def loaded(
    file: Path,
    stages: int,
    micro_batches: int,
    form: str = "compute_comms",
    ranks: int | None = None,
) -> _PipelineScheduleRuntime:
    """The schedule that torch makes of a file, as rank 0 sees it; it cannot run."""
    ranks = ranks or stages
    stage = SimpleNamespace(num_stages=stages, group_size=ranks, group_rank=0)
    schedule = _PipelineScheduleRuntime([stage] * (stages // ranks), micro_batches)
    schedule._load_csv(str(file), format=form)
    return schedule


def simulates(schedule: _PipelineScheduleRuntime) -> bool:
    """Whether torch's own dry run of a schedule comes to its end."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it could not finish
            schedule._simulate()
    except ValueError:
        return False
    return True


def forward_actions(schedule: _PipelineScheduleRuntime) -> dict[int, list[str]]:
    """What an evaluation executes of a schedule, by rank."""

    def flat(action: _Action) -> tuple[_Action, ...]:
        return action.sub_actions or (action,)

    return {
        rank: [
            str(a)
            for action in row
            for a in flat(action)
            if a.computation_type.value in FORWARD_ACTIONS
        ]
        for rank, row in schedule.pipeline_order_with_comms.items()
    }


@dataclass(frozen=True)
class Files:
    """Files to run one after the other, with the sizes of the micro-batches."""

    paths: tuple[str, ...]
    sizes: tuple[int, ...]


class Outcome(NamedTuple):
    """What the last stage returns."""

    losses: list[float]
    logits: torch.Tensor


def run_files(files: Files) -> list[Outcome]:
    """In each of the processes: evaluate the test model with torch's runtime on every file."""
    torch.set_num_threads(1)
    with process_group(TIMEOUT) as device:
        transport = TorchTransport(device=device)
        outcomes = [_run(Path(file), files.sizes, transport.rank) for file in files.paths]
        gathered = transport.gather_objects(outcomes)
        return [next(filter(None, found)) for found in zip(*gathered, strict=True)]


def _run(file: Path, sizes: tuple[int, ...], rank: int) -> Outcome | None:
    """What this rank has of a file: the rank of the last stage has the outcome."""
    placement = read_torch_csv(file).placement
    layers, data, last = mlp(), batches(sizes), len(placement) - 1
    boundaries = divide(layers, len(placement), "uniform")
    inputs, labels = (torch.cat([pair[k] for pair in data]) for k in (0, 1))
    stages = [
        PipelineStage(
            nn.Sequential(*layers[boundaries[s] : boundaries[s + 1]]).eval(),
            s,
            len(placement),
            torch.device("cpu"),
        )
        for s, holder in enumerate(placement)
        if holder == rank
    ]
    schedule = _PipelineScheduleRuntime(stages, len(sizes), loss_fn=nn.functional.mse_loss)
    schedule._load_csv(str(file), format="compute_comms")
    schedule.stage_index_to_group_rank = dict(enumerate(placement))
    for stage in stages:  # torch asks no file for the placement
        stage.stage_index_to_group_rank = dict(enumerate(placement))
    if any(a == b for a, b in pairwise(placement)):
        forget_backwards(schedule)
    losses: list[Any] = []
    given = [inputs] if rank == placement[0] else []
    with torch.no_grad():
        if rank != placement[last]:
            schedule.eval(*given)
            return None
        logits = schedule.eval(*given, target=labels, losses=losses)
    return Outcome([float(loss) for loss in losses], logits)


def forget_backwards(schedule: _PipelineScheduleRuntime) -> None:
    """Leave only what an evaluation executes.

    For backwards between two stages of one rank, torch 2.13 asserts under `eval` that there are
    gradients (`get_local_bwd_output`), though it passes over all others.
    """
    for rank, row in schedule.pipeline_order_with_comms.items():
        kept = [action for action in row if action.computation_type.value in FORWARD_ACTIONS]
        schedule.pipeline_order_with_comms[rank] = kept


def of_torch(name: str, ranks: int, micro_batches: int) -> _PipelineScheduleRuntime:
    """A schedule that torch ships with two stages on each rank, as rank 0 sees it."""
    stages = [
        SimpleNamespace(num_stages=2 * ranks, group_size=ranks, group_rank=0, submod=None)
        for _ in range(2)
    ]
    schedule: _PipelineScheduleRuntime = getattr(schedules, f"Schedule{name}")(
        stages, n_microbatches=micro_batches
    )
    return schedule
