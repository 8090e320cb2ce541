"""The overlapped variant of derived programs: what the passes make of them.

The passes see instructions one by one. Of ranks whose programs are the same but for the numbers of
their stages and for when they begin, as those in the middle of a long pipeline, they see one.
"""

from dataclasses import replace

import numpy as np

from schedcc.derive.programs import Programs
from schedcc.passes import Pass, overlapped, overlapped_by_channel
from schedcc.table.codes import FIELDS, NONE, Ints
from schedcc.table.materialise import steps_of
from schedcc.table.rows import Rows
from schemas import PlanHeader, RankProgram


def overlapped_programs(programs: Programs, *, by_channel: bool) -> Programs:
    """The overlapped variant of blocking programs.

    Args:
        programs: Of all ranks.
        by_channel: Whether each channel has a queue of its own.
    """
    header, known = programs.header(), dict[bytes, tuple[Ints, int]]()
    transform = overlapped_by_channel if by_channel else overlapped
    rows = [
        _overlapped(rank, rows, header, programs.steps, known, transform)
        for rank, rows in enumerate(programs.rows)
    ]
    return replace(programs, rows=rows)


def _overlapped(
    rank: int,
    rows: Rows,
    header: PlanHeader,
    steps: int,
    known: dict[bytes, tuple[Ints, int]],
    transform: Pass,
) -> Rows:
    begins, base = int(rows.step[0]), int(rows.stage.min())
    # One step is left of those before the first instruction, and one of those behind the last.
    offset = max(0, begins - 1)
    close = np.stack(rows.columns)
    close[_STEP] -= offset
    last = int(close[_STEP, -1])
    length = min(steps - offset, last + 2)
    at_ends = (rows.stage == 0) + 2 * (rows.stage == header.stages - 1)
    key = b"".join((_moved(close, -base).tobytes(), at_ends.tobytes(), bytes([length - last])))
    if key not in known:
        program = RankProgram.model_construct(
            rank=rank, steps=steps_of(Rows(*close), 0, length), epilogue=()
        )
        known[key] = np.stack(Rows.of(transform(program, header).steps).columns), base
    found, like = known[key]
    moved = _moved(found, base - like)
    step = moved[_STEP]
    moved[_STEP] = np.where(step == 0, 0, np.where(step == length - 1, steps - 1, step + offset))
    return Rows(*moved)


_STAGE, _PEER, _STEP = 1 + FIELDS.index("stage"), 1 + FIELDS.index("peer"), -1


def _moved(columns: Ints, stages: int) -> Ints:
    """The rows, `[columns, rows]`, of a rank whose stages are so many further on."""
    moved = columns.copy()
    for column in (_STAGE, _PEER):
        moved[column] += stages * (moved[column] != NONE)
    return moved
