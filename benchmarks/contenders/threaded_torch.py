"""torch's Interleaved1F1B under `eval`, with threads as ranks and messages over emulated links.

torch's stages find their rank, and torch's schedules send, through a process group. Here each
thread's stages are told their rank, and what a schedule posts goes over the in-memory transport.
Schedule and stages are torch's, unchanged.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch.distributed.pipelining import PipelineStage, ScheduleInterleaved1F1B, schedules
from torch.testing._internal.distributed.fake_pg import FakeStore

from benchmarks.workload import Evaluated, Workload, loss_fn
from runtime.testing import InMemoryTransport
from runtime.transport.protocol import Pending

_making = threading.Lock()


class _Work(NamedTuple):
    """A posted transfer, as torch waits for it."""

    end: InMemoryTransport
    pending: Pending

    def wait(self) -> None:
        self.end.wait(self.pending)


class _Operation(NamedTuple):
    """A transfer that a stage wants."""

    end: InMemoryTransport
    sends: bool
    tensor: torch.Tensor
    peer: int

    def post(self) -> _Work:
        post = self.end.post_send if self.sends else self.end.post_receive
        return _Work(self.end, post([self.tensor.contiguous()], self.peer))


class _Stage(PipelineStage):
    """A stage of torch on the rank of a thread."""

    def __init__(self, end: InMemoryTransport, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.group_rank, self._end = end.rank, end

    def get_fwd_recv_ops(self, fwd_chunk_id: int) -> list[Any]:
        """The receives of a micro-batch's input."""
        return [
            _Operation(self._end, False, info.buffer, self._rank_of(info.source))
            for info in self.args_recv_info[fwd_chunk_id]
            if info.buffer is not None and info.source is not None  # not the first stage's
        ]

    def get_fwd_send_ops(self, fwd_chunk_id: int) -> list[Any]:
        """The sends of a micro-batch's output."""
        outputs = self.fwd_cache[fwd_chunk_id][0]
        return [
            _Operation(self._end, True, output, self._rank_of(stage))
            for index, output in enumerate(outputs)
            for stage in self.act_send_info[index]
            if stage is not None
        ]

    def _warmup_forward_vote(self, *_: Any, **__: Any) -> torch.Tensor:
        """All stages know their shapes; nothing has to be asked."""
        return torch.ones(1)

    def _warmup_backward_result(self, *_: Any, **__: Any) -> torch.Tensor:
        """Hence none has to be inferred."""
        return torch.ones(1)

    def _rank_of(self, stage: int) -> int:
        return self.stage_index_to_group_rank[stage]


@contextmanager
def over_emulated_links(ranks: int) -> Iterator[None]:
    """Have torch's schedules post to the transports of the threads that run them."""

    def post(operations: list[Any], desc: str | None = None) -> list[Any]:  # noqa: ARG001
        return [operation.post() for operation in operations]

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    try:
        with patch.object(schedules, "_batch_p2p", post):
            yield
    finally:
        dist.destroy_process_group()


class Interleaved:
    """`ScheduleInterleaved1F1B.eval` over the stages of one thread."""

    def __init__(self, workload: Workload, end: InMemoryTransport) -> None:
        """Make the stages of the rank of `end`."""
        count = workload.setting.stages
        with _making:
            self._stages = [
                _Stage(
                    end,
                    workload.stage(stage),
                    stage,
                    count,
                    torch.device("cpu"),
                    input_args=(workload.examples(stage)[0],),
                    output_args=(workload.examples(stage)[1],),
                )
                for stage in range(end.rank, count, end.ranks)
            ]
            self._schedule = ScheduleInterleaved1F1B(
                [*self._stages], workload.setting.micro_batches, loss_fn=_loss_of_chunk
            )
        self._last = self._stages[-1].is_last
        batch = torch.cat([inputs for inputs, _ in workload.data])
        self._arguments = (batch,) if self._stages[0].is_first else ()
        self._target = torch.stack([label for _, label in workload.data]) if self._last else None

    def __call__(self, *, keep_logits: bool = False) -> Evaluated | None:
        """Evaluate the batch."""
        losses: list[torch.Tensor] | None = [] if self._last else None
        with torch.no_grad():
            self._schedule.eval(
                *self._arguments, target=self._target, losses=losses, return_outputs=keep_logits
            )
        if losses is None:
            return None
        logits = list(self._stages[-1].output_chunks) if keep_logits else None
        return Evaluated([float(loss) for loss in losses], logits)


def _loss_of_chunk(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return loss_fn(output, target[0])
