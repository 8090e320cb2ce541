"""Recordings written by hand, and by the recorder over the in-memory transport."""

from pathlib import Path

import torch
from torch import nn

from runtime.execution.buffers import BufferPool
from runtime.execution.interpreter import Interpreter, Work
from runtime.execution.program import Program
from runtime.execution.transfers import Transfers
from runtime.outputs.logits import Logits
from runtime.outputs.losses import Losses
from runtime.outputs.metrics import Metrics
from runtime.outputs.options import EvalOptions
from runtime.outputs.results import Results
from runtime.recording.recorder import Recorder
from runtime.tensors.ownership import Owner
from runtime.testing import InMemoryTransport, run_threads
from schemas import PipelinePlan
from tests.support.models_for_tests import stream_of
from tests.support.recorded_lines import (
    BROKEN,
    CLOSE,
    COSTS,
    SECOND,
    SYMPTOM,
    Line,
    header,
    lines_of_run,
    until,
    write,
    write_all,
)

__all__ = [
    "BROKEN",
    "CLOSE",
    "COSTS",
    "SECOND",
    "SYMPTOM",
    "Line",
    "header",
    "lines_of_run",
    "run_recorded",
    "until",
    "write",
    "write_all",
]


def run_recorded(plan: PipelinePlan, directory: Path, *, fails: int | None = None) -> None:
    """Run all stages in memory and record them; stage `fails` raises in its second forward."""
    data = [(torch.zeros(2, 4), torch.zeros(2, 4))] * plan.micro_batches

    def stage(end: InMemoryTransport) -> None:
        here = end.rank
        recorder = Recorder(directory, end)
        stage_plan, buffers = plan.stage(here), BufferPool(end.receive_memory)
        stream = stream_of(data, end)
        transfers = Transfers(end, buffers, stream, stage_plan.placement)

        def forward(micro_batch: int, inputs: torch.Tensor, _: object) -> torch.Tensor:
            if here == fails and micro_batch == 1:
                raise ArithmeticError("no second forward")
            return inputs + 1

        work = Work(
            forwards={here: forward},
            stream=stream,
            transfers=transfers,
            results=Results(
                Losses(end.device), Metrics({}, end), Logits(EvalOptions(), end.device)
            ),
            own=Owner([nn.Identity()], buffers.memory.ours).own,
            listeners=(recorder,),
        )
        try:
            with recorder.run(stage_plan, transfers):
                Interpreter(Program.of(stage_plan), end, buffers).run(work)
        finally:
            recorder.close()

    run_threads(plan.stages, stage, timeout=30)
