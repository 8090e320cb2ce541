"""The forwards of schedules in which no micro-batch waits: from step to step, stage to stage."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]


def grid(enters: Callable[[Numbers], Numbers], micro_batches: int, stages: int) -> Numbers:
    """`[stages * micro_batches, 3]`: step, stage and micro-batch of every forward.

    Args:
        enters: `m -> step`: when micro-batches are on the first stage.
        micro_batches: M.
        stages: S.
    """
    stage, micro_batch = np.divmod(np.arange(stages * micro_batches), micro_batches)
    return np.stack([enters(micro_batch) + stage, stage, micro_batch], axis=1)
