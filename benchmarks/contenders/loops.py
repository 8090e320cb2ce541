"""Loops as one would write them by hand: they receive, forward and send, and do nothing else.

They are the mark for an interpreter: no shapes that differ, no checks, no errors that reach others.
"""

from collections import deque

import torch
import torch.distributed as dist

from benchmarks.workload import Evaluated, Workload, loss_fn


class Loop:
    """What both loops share: this process's stage, its neighbours, and what the last one keeps."""

    def __init__(self, workload: Workload) -> None:
        """Take the stage of this process's rank."""
        self._here, self._stages = dist.get_rank(), dist.get_world_size()
        self._first, self._last = self._here == 0, self._here == self._stages - 1
        self._module, self._data = workload.stage(self._here), workload.data
        shape = (workload.setting.rows, workload.setting.width)
        self._places = [torch.empty(shape), torch.empty(shape)]
        self._losses: list[torch.Tensor] = []
        self._logits: list[torch.Tensor] | None = None

    def __call__(self, *, keep_logits: bool = False) -> Evaluated | None:
        """Evaluate all micro-batches."""
        self._losses, self._logits = [], [] if keep_logits else None
        self.run()
        if not self._last:
            return None
        return Evaluated([float(loss) for loss in self._losses], self._logits)

    def run(self) -> None:
        """Move and forward all micro-batches."""
        raise NotImplementedError

    def _forward(self, micro_batch: int, received: torch.Tensor) -> torch.Tensor:
        inputs, label = self._data[micro_batch]
        output: torch.Tensor = self._module(inputs if self._first else received)
        if self._last:
            self._losses.append(loss_fn(output, label))
            if self._logits is not None:
                self._logits.append(output)
        return output


class BlockingLoop(Loop):
    """Even stages send and then receive, odd stages receive and then send; nothing overlaps."""

    def run(self) -> None:
        """M + S - 1 steps."""
        micro_batches = len(self._data)
        outputs: deque[torch.Tensor] = deque()
        for step in range(micro_batches + self._stages - 1):
            micro_batch = step - self._here
            if self._here % 2 == 0:
                self._send(outputs)
            if 0 <= micro_batch < micro_batches and not self._first:
                dist.recv(self._places[0], self._here - 1)
            if self._here % 2 == 1:
                self._send(outputs)
            if 0 <= micro_batch < micro_batches:
                outputs.append(self._forward(micro_batch, self._places[0]))
        self._send(outputs)

    def _send(self, outputs: deque[torch.Tensor]) -> None:
        if outputs:
            output = outputs.popleft()
            if not self._last:
                dist.send(output, self._here + 1)


class PrefetchingLoop(Loop):
    """Receives are posted two micro-batches ahead, and sends are waited for two behind."""

    def run(self) -> None:
        """M micro-batches, each as soon as it is there."""
        micro_batches = len(self._data)
        receives: deque[dist.Work | None] = deque()
        sends: deque[tuple[dist.Work | None, torch.Tensor]] = deque()
        if not self._first:
            for place in self._places[:micro_batches]:
                receives.append(dist.irecv(place, self._here - 1))
        for micro_batch in range(micro_batches):
            place = self._places[micro_batch % 2]
            if not self._first:
                _wait(receives.popleft())
            output = self._forward(micro_batch, place)
            if not self._first and micro_batch + 2 < micro_batches:
                receives.append(dist.irecv(place, self._here - 1))
            if not self._last:
                if len(sends) == 2:
                    _wait(sends.popleft()[0])
                sends.append((dist.isend(output, self._here + 1), output))
        for work, _ in sends:
            _wait(work)


def _wait(work: dist.Work | None) -> None:
    assert work is not None
    work.wait()
