"""Row 0: whether several NCCL ranks can be on one GPU, which the rows behind it need."""

from typing import Any

import torch
import torch.distributed as dist

from benchmarks.gpu.context import Context
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.ranks import APPROACHES, GLOO, OWN_GPUS, Approach, remember, run_ranks
from benchmarks.gpu.report import Found

RANKS = 2
PATIENCE = 18.0


def several_ranks(context: Context) -> Found:
    """Try each approach; the first that works is noted for the other rows."""
    lines, found = [], None
    for approach in _approaches(context.machine):
        answers = run_ranks(RANKS, _sums, None, context.machine, approach, PATIENCE)
        works = all(answer.value == (float(RANKS), 1.0) for answer in answers)
        told = "works" if works else f"does not work: {answers[0]}; {answers[1]}"
        lines.append(f"{approach.name} {told}")
        if works:
            found = approach
            break
    remember(context.folder, found)
    return Found(found is not None, lines)


def _approaches(machine: Machine) -> tuple[Approach, ...]:
    if machine.dry:
        return (GLOO,)
    return (OWN_GPUS,) if torch.cuda.device_count() >= RANKS + 1 else APPROACHES


def _sums(machine: Machine, _: Any) -> tuple[float, float]:
    """The sum over all ranks of 1, and a number from the rank before."""
    one = torch.ones(1, device=machine.device)
    dist.all_reduce(one)
    rank, size = dist.get_rank(), dist.get_world_size()
    came = torch.zeros(1, device=machine.device)
    calls = [
        dist.P2POp(dist.isend, torch.ones(1, device=machine.device), (rank + 1) % size),
        dist.P2POp(dist.irecv, came, (rank - 1) % size),
    ]
    for work in dist.batch_isend_irecv(calls):
        work.wait()
    machine.synchronize()
    return float(one), float(came)
