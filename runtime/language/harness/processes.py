"""Which processes score, and what the harness may know of them.

The harness shares requests out over `world_size` processes. The stages of one pipeline have the
same requests, so each says that it is the rank of its replica: `world_size` counts replicas.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import Any

import torch
import torch.distributed as dist

from runtime.distributed.process_group import process_group, processes_of_launcher
from runtime.language.models import ModelFiles
from runtime.language.scoring import DistributedScorer, LocalScorer, Scorer, ScorerOptions
from runtime.transport.torch_distributed.object_gather import gather_objects


class ScoringProcesses:
    """A scorer, and the replicas of its pipeline."""

    def __init__(self) -> None:
        """Alone, until `started` says something else."""
        self.scorer: Scorer
        self.device = torch.device("cpu")
        self.replica, self.replicas, self.stages = 0, 1, 1
        self.shows = True
        """Whether this process shows progress."""
        self._peers: dist.ProcessGroup | None = None
        self._end = ExitStack()

    def close(self) -> None:
        """Give back processes and connections."""
        self._end.close()

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensors of all replicas, one after the other; a scalar counts as one element."""
        if self._peers is None:
            return tensor
        flat = tensor.reshape(-1) if tensor.dim() == 0 else tensor
        found = [torch.empty_like(flat) for _ in range(self.replicas)]
        dist.all_gather(found, flat.contiguous(), group=self._peers)
        return torch.cat(found)

    def gather_objects(self, value: Any, to: int) -> list[Any] | None:
        """The values of all replicas on replica `to`, `None` on the others."""
        if self._peers is None:
            return [value]
        found = gather_objects(value, self._from_all)
        return found if self.replica == to else None

    def _from_all(self, own: torch.Tensor) -> list[torch.Tensor]:
        everyone = self.all_gather(own.to(self.device)).cpu()
        return list(everyone.view(self.replicas, -1).unbind())

    def barrier(self) -> None:
        """Wait for all replicas."""
        if self._peers is not None:
            dist.barrier(group=self._peers)


def started(
    files: ModelFiles, options: ScorerOptions, *, stages: int | None, replicas: int | None
) -> ScoringProcesses:
    """The processes for a model: those of the launcher, or others that are started here.

    Args:
        files: The model.
        options: How it is scored.
        stages: S; default: one, or what a launcher has started, divided by `replicas`.
        replicas: Under a launcher: default: what it has started, divided by `stages`.

    Raises:
        AgreementError: a launcher has started another number of processes than wanted.
        ModelError, PartitionError, WorkerError: the model cannot be loaded.
        ValueError: replicas are wanted, and no launcher has started them.
    """
    processes = ScoringProcesses()
    launched = processes_of_launcher()
    if launched is None:
        if replicas not in (None, 1):
            raise ValueError(
                f"replicas is {replicas}, but this process was started alone: start "
                f"{replicas * (stages or 1)} processes with torchrun"
            )
        alone = 1 if stages is None else stages
        scorer = LocalScorer(files, options, stages=alone)
        processes.scorer, processes.stages = scorer, alone
        processes._end.callback(scorer.close)
        return processes
    if replicas is None:
        replicas = max(1, launched[1] // (stages or launched[1]))
    from runtime.distributed.grid import DATA, PIPELINE, make_grid

    device = processes._end.enter_context(process_group())
    grid = make_grid(stages, replicas)
    pipeline, data = grid[PIPELINE], grid[DATA]
    processes.stages, processes.replicas = pipeline.size(), data.size()
    processes.replica = data.get_local_rank()
    processes.shows = os.environ.get("LOCAL_RANK", "0") == "0"
    if replicas > 1:
        processes._peers = data.get_group()
    processes.device = device
    local = DistributedScorer(files, options, stages=pipeline.size(), mesh=pipeline, device=device)
    processes.scorer = local
    processes._end.callback(local.close)
    return processes


def require_device(wanted: object) -> None:
    """Refuse the CPU where the processes would use GPUs.

    The harness's command line names `cuda:0` where the user names nothing, so that says nothing.

    Raises:
        ValueError: the CPU is wanted, and there are GPUs.
    """
    if str(wanted) == "cpu" and torch.cuda.is_available():
        raise ValueError(
            "device is 'cpu' on a machine with GPUs, needed hidden GPUs: CUDA_VISIBLE_DEVICES="
        )
