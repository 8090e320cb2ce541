"""Scoring where a launcher has started the processes, and each calls the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from runtime.language.models import ModelFiles
from runtime.language.scoring.batching import MicroBatch
from runtime.language.scoring.options import ScorerOptions
from runtime.language.scoring.scorer import Progress, Scorer, counted
from runtime.language.scoring.stage import Kind, ScoringStage, stage_data

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from transformers import PreTrainedConfig


class DistributedScorer(Scorer):
    """A scorer in each process of a pipeline; all make the same calls, and all get the answers."""

    def __init__(
        self,
        files: ModelFiles,
        options: ScorerOptions,
        *,
        stages: int,
        mesh: DeviceMesh | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Load this process's layers. All processes of the pipeline have to call this.

        Args:
            files: The model.
            options: How it is scored; the same in all processes.
            stages: S.
            mesh: With a dimension `"pp"`; default: all processes are the stages.
            device: Of this process.

        Raises:
            ModelError, PartitionError, RemoteError: as of `ScoringStage`.
        """
        super().__init__(files, options)
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        self._stage = ScoringStage(files, options, stages=stages, mesh=mesh, device=device)

    @property
    def config(self) -> PreTrainedConfig:
        """The model's configuration, as transformers has it."""
        return self._stage.config

    def close(self) -> None:
        """Give back connections, threads and shared memory."""
        self._stage.close()

    def _run(
        self, batches: Sequence[MicroBatch], kind: Kind, progress: Progress | None
    ) -> Sequence[torch.Tensor]:
        evaluator = self._stage.evaluator
        data = stage_data(batches, kind, first=evaluator.is_first, last=evaluator.is_last)
        answers = self._stage.run(data, everywhere=True, progress=counted(batches, progress))
        assert answers is not None
        return answers
