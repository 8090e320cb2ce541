"""The codes of instructions, and what their classes declare, by code.

What an instruction is and does is looked up by its code in small arrays, which are made from what
the classes declare; so nothing that reads a table asks which class a row is, and a new instruction
has a code here, too.
"""

from collections.abc import Callable
from typing import Any, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from schemas import (
    BufferInstruction,
    CopyActivation,
    Direction,
    GroupEnd,
    GroupStart,
    Instruction,
    Phase,
    Place,
    TransferInstruction,
)

Ints: TypeAlias = NDArray[np.int64]
Bools: TypeAlias = NDArray[np.bool_]

OPS: tuple[type[Instruction], ...] = get_args(Instruction)
"""The instructions; the code of each is its index."""

CODES = {op: code for code, op in enumerate(OPS)}

FIELDS = ("stage", "micro_batch", "buffer", "peer", "peer_buffer")
"""The fields of instructions that are columns."""

NONE = -1
"""In a column: the instruction has no such field, or stands in the epilogue (column `step`)."""


def lookup(question: Callable[[Any], bool]) -> Bools:
    """The answer to a question about a class of instructions, by code."""
    return np.array([question(op) for op in OPS])


IS_BUFFER = lookup(lambda op: issubclass(op, BufferInstruction))
IS_TRANSFER = lookup(
    lambda op: issubclass(op, TransferInstruction) and op.effects.phase is not Phase.WAIT
)
IS_WAIT = lookup(lambda op: issubclass(op, BufferInstruction) and op.effects.phase is Phase.WAIT)
IS_POST = lookup(lambda op: issubclass(op, BufferInstruction) and op.effects.phase is Phase.POST)
IS_SEND = lookup(lambda op: issubclass(op, TransferInstruction) and op.direction is Direction.SEND)
IS_PAIRED = lookup(lambda op: issubclass(op, TransferInstruction))
IS_COPY = lookup(lambda op: op is CopyActivation)
IS_FORWARD = lookup(
    lambda op: (
        issubclass(op, BufferInstruction)
        and any(access.place is Place.OUTPUT for access in op.effects.writes)
    )
)
IS_GROUP_START = lookup(lambda op: op is GroupStart)
IS_GROUP_END = lookup(lambda op: op is GroupEnd)


def is_forward(instruction: Instruction) -> bool:
    """Whether an instruction computes: it writes an output."""
    return bool(IS_FORWARD[CODES[type(instruction)]])
