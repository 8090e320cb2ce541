"""`torch.distributed.pipelining` on the same stages: its GPipe schedule and schedule runtime."""

import torch
import torch.distributed as dist
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe
from torch.distributed.pipelining.schedules import (
    _Action,
    _ComputationType,
    _PipelineScheduleRuntime,
)

from benchmarks.workload import Evaluated, Workload, loss_fn


class TorchSchedule:
    """An engine of torch, fed with the batch that it cuts into micro-batches."""

    def __init__(self, workload: Workload) -> None:
        """Make this process's stage, and all that can be made before the measurement."""
        setting = workload.setting
        self._last = dist.get_rank() == setting.stages - 1
        received, sent = workload.examples(dist.get_rank())
        self._stage = PipelineStage(
            workload.stage(dist.get_rank()),
            dist.get_rank(),
            setting.stages,
            torch.device("cpu"),
            input_args=(received,),
            output_args=(sent,),
        )
        self._micro_batches = setting.micro_batches
        self._schedule = self._make_schedule()
        batch = torch.cat([inputs for inputs, _ in workload.data])
        self._arguments = (batch,) if dist.get_rank() == 0 else ()
        # Labels [width] become the rows of one target that is cut along its first dimension.
        self._target = torch.stack([label for _, label in workload.data]) if self._last else None

    def __call__(self, *, keep_logits: bool = False) -> Evaluated | None:
        """Evaluate the batch."""
        losses: list[torch.Tensor] | None = [] if self._last else None
        self._schedule.eval(
            *self._arguments, target=self._target, losses=losses, return_outputs=keep_logits
        )
        if losses is None:
            return None
        logits = list(self._stage.output_chunks) if keep_logits else None
        return Evaluated([float(loss) for loss in losses], logits)

    def _make_schedule(self) -> ScheduleGPipe | _PipelineScheduleRuntime:
        raise NotImplementedError


class GPipe(TorchSchedule):
    """`ScheduleGPipe.eval`: sends are waited for at the end, receives at once."""

    def _make_schedule(self) -> ScheduleGPipe:
        return ScheduleGPipe(self._stage, self._micro_batches, loss_fn=_loss_of_chunk)


class ScheduleRuntime(TorchSchedule):
    """`_PipelineScheduleRuntime` with every receive posted one micro-batch ahead of its need."""

    def _make_schedule(self) -> _PipelineScheduleRuntime:
        stages = self._stage.num_stages
        schedule = _PipelineScheduleRuntime(  # type: ignore[no-untyped-call]
            [self._stage], self._micro_batches, loss_fn=_loss_of_chunk
        )
        # Its validation demands backward passes, so the order is set past it.
        schedule.pipeline_order_with_comms = {s: self._actions(s, stages) for s in range(stages)}
        return schedule

    def _actions(self, stage: int, stages: int) -> list[_Action]:
        receive, forward, send = (
            _ComputationType.RECV_F,
            _ComputationType.FORWARD,
            _ComputationType.SEND_F,
        )
        actions = [_Action(stage, receive, 0)] if stage > 0 else []
        for micro_batch in range(self._micro_batches):
            if stage > 0 and micro_batch + 1 < self._micro_batches:
                actions.append(_Action(stage, receive, micro_batch + 1))
            actions.append(_Action(stage, forward, micro_batch))
            if stage < stages - 1:
                actions.append(_Action(stage, send, micro_batch))
        return actions


def _loss_of_chunk(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return loss_fn(output, target[0])
