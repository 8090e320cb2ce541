"""Schedules of torch.distributed.pipelining: loading them alone, running them in processes."""

import contextlib
import io
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import _Action, _PipelineScheduleRuntime

from runtime.distributed.process_group import process_group
from runtime.modules.partition import divide
from runtime.transport import TorchTransport
from tests.support.models_for_tests import batches, mlp

TIMEOUT = timedelta(seconds=60)


def loaded(
    file: Path, stages: int, micro_batches: int, form: str = "compute_comms"
) -> _PipelineScheduleRuntime:
    """The schedule that torch makes of a file, as rank 0 sees it; it cannot run."""
    stage = SimpleNamespace(num_stages=stages, group_size=stages, group_rank=0)
    schedule = _PipelineScheduleRuntime([stage], micro_batches)
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
    kept = ("F", "SEND_F", "RECV_F")

    def flat(action: _Action) -> tuple[_Action, ...]:
        return action.sub_actions or (action,)

    return {
        rank: [str(a) for action in row for a in flat(action) if a.computation_type.value in kept]
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
        stage_id, stages = transport.stage_id, transport.stages
        layers = mlp()
        boundaries = divide(layers, stages, "uniform")
        module = nn.Sequential(*layers[boundaries[stage_id] : boundaries[stage_id + 1]]).eval()
        outcomes = [_run(file, files.sizes, module, stage_id, stages) for file in files.paths]
        gathered = transport.gather_objects(outcomes)
        return gathered[-1] if gathered else []


def _run(
    file: str, sizes: tuple[int, ...], module: nn.Module, stage_id: int, stages: int
) -> Outcome | None:
    data = batches(sizes)
    inputs, labels = (torch.cat([pair[k] for pair in data]) for k in (0, 1))
    stage = PipelineStage(module, stage_id, stages, torch.device("cpu"))
    schedule = _PipelineScheduleRuntime([stage], len(sizes), loss_fn=nn.functional.mse_loss)
    schedule._load_csv(file, format="compute_comms")
    losses: list[Any] = []
    with torch.no_grad():
        if stage_id == stages - 1:
            logits = schedule.eval(target=labels, losses=losses)
            return Outcome([float(loss) for loss in losses], logits)
        schedule.eval(*([inputs] if stage_id == 0 else []))
        return None
