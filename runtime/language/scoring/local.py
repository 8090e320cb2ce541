"""Scoring from one process, which is a stage itself and starts the others on this machine."""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from os import PathLike, fspath
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from runtime.distributed.local_run import store_in
from runtime.failure.errors import RemoteError
from runtime.language.models import ModelFiles, locate_model
from runtime.language.scoring.batching import MicroBatch
from runtime.language.scoring.options import ScorerOptions
from runtime.language.scoring.scorer import Progress, Scorer, counted
from runtime.language.scoring.stage import Kind, ScoringStage, stage_data
from runtime.language.scoring.worker import Workers, WorkerSettings, join
from runtime.modules.partition import PartitionError
from schedcc.errors import require_count

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_open_scorers: weakref.WeakSet[LocalScorer] = weakref.WeakSet()
"""Of several stages."""


class LocalScorer(Scorer):
    """A scorer whose process is the first stage, and starts the others.

    The others stay until it is closed, or until this process ends, however it ends::

        with LocalScorer("smollm2", stages=2) as scorer:
            scores = scorer.score([TokenPair(context, continuation), ...])
    """

    def __init__(
        self,
        model: str | PathLike[str] | ModelFiles,
        options: ScorerOptions | None = None,
        *,
        stages: int = 1,
    ) -> None:
        """Start the other processes, and load this one's layers.

        Args:
            model: What `pipeval --model` takes, or what `locate_model` found.
            options: How it is scored.
            stages: S. With more than one, this process joins a process group of
                `torch.distributed` and leaves it when the scorer is closed.

        Raises:
            ModelError: there is no such model, or it cannot be loaded.
            PartitionError: it has fewer layers than stages.
            WorkerError: a process could not be started, or load its layers.
            ValueError: a process group exists already, for another scorer of several stages that
                is open in this process, say.
        """
        require_count("stages", stages)
        files = model if isinstance(model, ModelFiles) else locate_model(fspath(model))
        super().__init__(files, options or ScorerOptions())
        if stages > files.num_blocks + 2:
            raise PartitionError(
                f"{stages} stages for the {files.num_blocks + 2} layers of {files.name}, needed a "
                "layer for each stage"
            )
        self._workers = Workers()
        self._stage: ScoringStage | None = None
        # Also at the end of this process: its threads may still wait for the others then.
        self._end = weakref.finalize(self, self._workers.end)
        try:
            self._stage = self._started(stages)
        except BaseException:
            self.close()
            raise

    @staticmethod
    def close_all() -> None:
        """Close the scorers of several stages that are open in this process.

        For one that a notebook keeps alive, with the traceback of an error, and has no name for.
        """
        for scorer in [*_open_scorers]:
            scorer.close()

    @property
    def config(self) -> PreTrainedConfig:
        """The model's configuration, as transformers has it."""
        return self._open.config

    @property
    def _open(self) -> ScoringStage:
        if self._stage is None:
            raise ValueError("the scorer was closed, needed an open one: make another")
        return self._stage

    def close(self) -> None:
        """End the other processes; another time does nothing."""
        _open_scorers.discard(self)
        stage, self._stage = self._stage, None
        if stage is not None:
            stage.close()
        self._end()

    def _started(self, stages: int) -> ScoringStage:
        options = self.options
        if stages == 1 and not torch.cuda.is_available():
            if options.threads is not None:
                torch.set_num_threads(options.threads)
            return ScoringStage(self.files, options, stages=1)
        if dist.is_initialized():
            if (other := next(iter(_open_scorers), None)) is not None:
                raise ValueError(
                    f"another scorer is open in this process ({other.files.name}, "
                    f"{other._open.evaluator.stages} stages), needed one of several stages at a "
                    "time: close it first (close(), or LocalScorer.close_all())"
                )
            raise ValueError(
                "torch.distributed is initialised already, needed a process without a process "
                "group: a scorer of several stages makes one (use DistributedScorer in processes "
                "that a launcher has started)"
            )
        threads = options.threads or max(1, (os.cpu_count() or 1) // stages)
        torch.set_num_threads(threads)
        workers = self._workers
        directory = workers.start(stages - 1)
        for rank in workers.as_they_come():
            settings = WorkerSettings(self.files, options, rank, stages, threads)
            workers.send(rank, settings)
        device = join(store_in(directory, stages), 0, stages)
        workers.grouped = True
        try:
            stage = ScoringStage(self.files, options, stages=stages, device=device)
        except RemoteError as error:
            raise workers.reason(error) from None
        for _ in workers.as_they_come():
            pass  # one that cannot go on raises
        _open_scorers.add(self)
        return stage

    def _run(
        self, batches: Sequence[MicroBatch], kind: Kind, progress: Progress | None
    ) -> Sequence[torch.Tensor]:
        stage, workers = self._open, self._workers
        stages = stage.evaluator.stages
        try:
            for rank in range(1, stages):
                data = stage_data(batches, kind, first=False, last=rank == stages - 1)
                workers.send(rank, data)
            mine = stage_data(batches, kind, first=True, last=stages == 1)
            answers = stage.run(mine, everywhere=False, progress=counted(batches, progress))
        except BaseException as error:
            reason = workers.reason(error) if isinstance(error, RemoteError) else error
            self.close()
            if reason is error:
                raise
            raise reason from None  # what is gone explains all that the others saw
        assert answers is not None
        return answers
