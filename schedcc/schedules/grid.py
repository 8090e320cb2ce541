"""The forwards of schedules in which no micro-batch waits: from step to step, stage to stage."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]


def grid(
    enters: Callable[[Numbers, int, int], Numbers], micro_batches: int, stages: int, ranks: int
) -> Numbers:
    """`[stages * micro_batches, 3]`: step, stage and micro-batch of every forward.

    Args:
        enters: `(m, stages, ranks) -> step`: when micro-batches are on the first stage. A formula
            in `+`, `*`, `//` and `%`: `tests/proofs` proves what follows from it for all sizes.
        micro_batches: M.
        stages: S.
        ranks: R.
    """
    stage, micro_batch = np.divmod(np.arange(stages * micro_batches), micro_batches)
    step = enters(micro_batch, stages, ranks) + stage
    return np.stack([step, stage, micro_batch], axis=1)
