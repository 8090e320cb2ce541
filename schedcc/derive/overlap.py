"""The overlapped variant of derived programs: what the passes make of them.

The passes see instructions one by one. Of ranks whose programs are the same but for the numbers of
their stages and for when they begin, as those in the middle of a long pipeline, they see one.
"""

from dataclasses import replace

import numpy as np

from schedcc.derive.programs import Programs
from schedcc.passes import overlapped
from schedcc.table.materialise import steps_of
from schedcc.table.table import NONE, Ints, Rows
from schemas import PlanHeader, RankProgram


def overlapped_programs(programs: Programs) -> Programs:
    """The overlapped variant of blocking programs."""
    header, known = programs.header(), dict[bytes, tuple[Rows, int]]()
    rows = [
        _overlapped(rank, rows, header, programs.steps, known)
        for rank, rows in enumerate(programs.rows)
    ]
    return replace(programs, rows=rows)


def _overlapped(
    rank: int, rows: Rows, header: PlanHeader, steps: int, known: dict[bytes, tuple[Rows, int]]
) -> Rows:
    begins, base = int(rows.step[0]), int(rows.stage.min())
    # One step is left of those before the first instruction, and one of those behind the last.
    offset = max(0, begins - 1)
    close = replace(rows, step=rows.step - offset)
    length = min(steps - offset, int(close.step[-1]) + 2)
    at_ends = (rows.stage == 0).astype(np.int64) + 2 * (rows.stage == header.stages - 1)
    relative = _moved(close, -base)
    key = b"".join(column.tobytes() for column in (*relative.columns, at_ends)) + bytes(
        [length - int(close.step[-1])]
    )
    if key not in known:
        program = RankProgram.model_construct(
            rank=rank, steps=steps_of(close, 0, length), epilogue=()
        )
        known[key] = Rows.of(overlapped(program, header).steps), base
    found, like = known[key]
    moved = _moved(found, base - like)
    step = moved.step + offset
    step[moved.step == 0] = 0
    step[moved.step == length - 1] = steps - 1
    return replace(moved, step=step)


def _moved(rows: Rows, stages: int) -> Rows:
    """The rows of a rank whose stages are so many further on."""

    def later(column: Ints) -> Ints:
        return np.where(column == NONE, NONE, column + stages)

    return replace(rows, stage=later(rows.stage), peer=later(rows.peer))
