"""Buffers: as few as the lifetimes need.

A stage holds a micro-batch from the step in which its activation comes in (on the first stage: in
which it is forwarded) to the step behind its forward, in which its output goes out. The lifetimes
on a stage are intervals of steps, and buffers are colours of their interval graph, whose clique
number is enough of them: the most lifetimes that share a step. Micro-batches begin and end in their
order, so taking the buffers in turn is such a colouring: where there are `n`, micro-batch `m + n`
begins after `m` has ended. For the source's schedule `n` is 2, and `m % 2` is DeepSpeed's `step_id
% 2`.

The last stage has nothing to send and keeps its buffer for a step nevertheless: so the next receive
can be on its way while it forwards.
"""

import numpy as np

from schedcc.derive.forwards import Forwards


def count_buffers(forwards: Forwards) -> int:
    """How many buffers a stage needs, the same number on all."""
    begins = np.concatenate([forwards.step[:1], forwards.step[:-1] + 1])
    ends = forwards.step + 1
    # When m begins, those that have not ended are m and the ones just before it.
    ended = (np.searchsorted(e, b) for b, e in zip(begins, ends, strict=True))
    alive = (np.arange(1, forwards.micro_batches + 1) - before for before in ended)
    return max(int(count.max(initial=1)) for count in alive)
