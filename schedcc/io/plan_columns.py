"""Plans in JSON as columns, without an object for each instruction.

A plan of a hundred thousand instructions takes ten times the memory as objects. So whoever only
wants its columns asks for them here. What is not plainly right gets no columns: then the models of
`schemas` read it, and say what is wrong with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from pydantic import ValidationError

from schedcc.table.codes import CODES, FIELDS, IS_BUFFER, NONE, OPS, Bools
from schedcc.table.materialise import steps_of
from schedcc.table.rows import Rows
from schedcc.table.table import PlanTable
from schemas import (
    EpilogueInstruction,
    Instruction,
    Placed,
    PlanHeader,
    RankProgram,
    ResultInstruction,
    StagePlan,
)

LARGEST_NUMBER = 2**61
"""Numbers from here on have no columns, and no place in a recording: sums of two would not fit."""

_CODE = {op.__name__: code for op, code in CODES.items()}
_IN_STEPS = {op.__name__ for op in OPS if not issubclass(op, ResultInstruction)}
_HAS = {name: np.array([name in op.model_fields for op in OPS]) for name in FIELDS}
_KEYS = np.array([len(op.model_fields) for op in OPS])


@dataclass(frozen=True, eq=False)
class ProgramColumns:
    """The program of one rank."""

    rank: int
    steps: int
    """Steps, of which the last ones may be empty."""
    rows: Rows
    """The instructions of all steps."""
    epilogue: tuple[EpilogueInstruction, ...]

    @classmethod
    def of(cls, program: RankProgram | StagePlan) -> "ProgramColumns":
        """The columns of a program."""
        return cls(program.rank, len(program.steps), Rows.of(program.steps), program.epilogue)

    def __len__(self) -> int:
        return len(self.rows) + len(self.epilogue)

    def placed(self, offset: int) -> Placed:
        """The instruction at a position of the program."""
        if offset >= len(self.rows):
            return Placed(offset, None, self.epilogue[offset - len(self.rows)])
        return placed(self.rows, offset)

    def program(self) -> RankProgram:
        """The program as objects."""
        steps = steps_of(self.rows, 0, self.steps)
        return RankProgram(rank=self.rank, steps=steps, epilogue=self.epilogue)


def placed(rows: Rows, row: int) -> Placed:
    """The instruction of a row of steps."""
    step = int(rows.step[row])
    ((instruction,),) = steps_of(rows[row : row + 1], step, step + 1)
    return Placed(row, step, instruction)


def table_of(header: PlanHeader, programs: Sequence[ProgramColumns]) -> PlanTable:
    """The table of programs; of several for one rank, the last one counts."""
    by_rank = {p.rank: (p.rank, p.rows, p.epilogue) for p in programs}
    return PlanTable.joined(header, list(by_rank.values()))


def program_columns(data: Any, *, first_format: bool = False) -> ProgramColumns | None:
    """The columns of a program in JSON (`rank`, `steps`, `epilogue`), if it is plainly right.

    Args:
        data: Values of a JSON document; further keys are the caller's business.
        first_format: Whether it is of the first format: `stage_id` in place of `rank`, and no
            `stage` in the instructions.
    """
    try:
        rank = data["stage_id" if first_format else "rank"]
        if type(data["steps"]) is not list or not _is_number(rank):
            return None
        rows = _step_rows(data["steps"], rank if first_format else None)
        if rows is None:
            return None
        bare = {"rank": rank, "steps": (), "epilogue": data.get("epilogue", ())}
        epilogue = RankProgram.model_validate(bare).epilogue
        if any(not fits_columns(instruction) for instruction in epilogue):
            return None
    except (KeyError, TypeError, AttributeError, OverflowError, ValidationError):
        return None
    return ProgramColumns(rank, len(data["steps"]), rows, epilogue)


def _step_rows(steps: list[list[dict[str, Any]]], stage_id: int | None) -> Rows | None:
    """The rows of steps, if every instruction has the keys of its class and integers for values.

    It has if it has as many keys as its class, and all that its class has. Where `stage_id` is
    given, none names its stage, which is this one.
    """
    if any(type(step) is not list for step in steps):
        return None
    instructions = list(chain.from_iterable(steps))
    ops = [instruction["op"] for instruction in instructions]
    if not _IN_STEPS.issuperset(ops):
        return None
    op = np.array([_CODE[name] for name in ops], dtype=np.int64)
    named = FIELDS if stage_id is None else FIELDS[1:]
    implied = sum(_HAS[name][op] for name in FIELDS if name not in named)
    if not np.array_equal(_KEYS[op] - implied, list(map(len, instructions))):
        return None
    columns = {name: _column(instructions, name, _HAS[name][op]) for name in named}
    if stage_id is not None:
        columns["stage"] = np.where(IS_BUFFER[op], stage_id, NONE)
    step = np.repeat(np.arange(len(steps)), np.array(list(map(len, steps)), dtype=np.int64))
    known = {name: column for name, column in columns.items() if column is not None}
    return Rows(op=op, step=step, **known) if len(known) == len(columns) else None


def _column(instructions: list[dict[str, Any]], name: str, needed: Bools) -> Any:
    """One field of all instructions, `NONE` where there is none; `None`: a value is not right."""
    values = [instruction.get(name, LARGEST_NUMBER) for instruction in instructions]
    if not {int}.issuperset(map(type, values)):
        return None
    found = np.array(values, dtype=np.int64)
    if (np.abs(found[needed]) >= LARGEST_NUMBER).any():
        return None
    found[~needed] = NONE
    return found


def _is_number(value: object) -> bool:
    return type(value) is int and abs(value) < LARGEST_NUMBER


def fits_columns(instruction: Instruction) -> bool:
    """Whether all numbers of an instruction have a place in columns."""
    return all(_is_number(v) for v in vars(instruction).values() if isinstance(v, int))
