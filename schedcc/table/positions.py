"""Where the stages of a table stand along the pipeline, and what instructions do there."""

from collections.abc import Callable
from typing import Any

import numpy as np

from schedcc.table.codes import OPS, Ints
from schedcc.table.table import PlanTable

_EXAMPLES = ((1, 3), (0, 2), (1, 2), (0, 1))
"""A middle, a first, a last, an only stage, as `(stage_id, stages)`; see `positions`."""


def by_position(question: Callable[[Any, int, int], Any]) -> Any:
    """`[code, position]`: the answer to a question about a class of instructions on a stage."""
    return np.array([[question(op, *example) for example in _EXAMPLES] for op in OPS])


def positions(table: PlanTable) -> Ints:
    """`[rows]`: where the stage of a row stands, an index into the answers of `by_position`."""
    stage = table.rows.stage
    first, last = stage == 0, stage == table.stages - 1
    where: Ints = first.astype(np.int64) + 2 * last
    return where
