"""Instructions as columns of numbers, a row for each."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np

from schedcc.table.codes import CODES, FIELDS, IS_BUFFER, NONE, Bools, Ints
from schemas import EpilogueInstruction, Instruction


@dataclass(frozen=True, eq=False)
class Rows:
    """The instructions of steps as columns of equal length; `NONE` where one has no such field."""

    op: Ints
    stage: Ints
    micro_batch: Ints
    buffer: Ints
    peer: Ints
    peer_buffer: Ints
    step: Ints

    @classmethod
    def of(cls, steps: Sequence[Sequence[Instruction]]) -> "Rows":
        """The rows of steps."""
        instructions = list(chain.from_iterable(steps))
        fields = [vars(instruction) for instruction in instructions]
        lengths = column(map(len, steps))
        return cls(
            op=column(map(CODES.__getitem__, map(type, instructions))),
            **{name: column([f.get(name, NONE) for f in fields]) for name in FIELDS},
            step=np.repeat(np.arange(len(steps)), lengths),
        )

    @classmethod
    def joined(cls, parts: Sequence["Rows"]) -> "Rows":
        """The rows of all parts, one after the other."""
        names = ("op", *FIELDS, "step")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    @classmethod
    def of_epilogue(cls, epilogue: Sequence[EpilogueInstruction]) -> "Rows":
        """The rows of an epilogue, which have nothing but their code."""
        nothing = np.full(len(epilogue), NONE, dtype=np.int64)
        codes = column(CODES[type(instruction)] for instruction in epilogue)
        return cls(codes, *(len(FIELDS) + 1) * [nothing])

    @property
    def columns(self) -> tuple[Ints, ...]:
        """The columns, in the order of the fields."""
        own = (self.stage, self.micro_batch, self.buffer, self.peer, self.peer_buffer)
        return self.op, *own, self.step

    def __len__(self) -> int:
        return len(self.op)

    def __getitem__(self, index: Any) -> "Rows":
        return Rows(*(values[index] for values in self.columns))

    def repeated(self, micro_batches: Ints, steps: Ints) -> "Rows":
        """Copies of the rows, each later by a number of micro-batches and of steps."""
        length, copies = len(self), len(steps)
        tiled = Rows(*(np.tile(values, copies) for values in self.columns))
        later = np.repeat(micro_batches, length)
        return replace(
            tiled,
            micro_batch=np.where(IS_BUFFER[tiled.op], tiled.micro_batch + later, NONE),
            step=tiled.step + np.repeat(steps, length),
        )


def column(values: Iterable[int]) -> Ints:
    """Numbers as a column; those that do not fit are `fitting`."""
    numbers = list(values)
    try:
        return np.array(numbers, dtype=np.int64)
    except OverflowError:
        return np.array([fitting(number) for number in numbers], dtype=np.int64)


def fitting(number: int) -> int:
    """`number`, or the nearest that leaves room to calculate: no plan has that many of anything."""
    return max(-(2**62), min(number, 2**62))


def same_as_before(order: Ints, *columns: Ints | Bools) -> Bools:
    """Whether each row in `order` has the same values in the columns as the one before it."""
    same = np.zeros(len(order), dtype=bool)
    same[1:] = True
    for values in columns:
        same[1:] &= values[order[1:]] == values[order[:-1]]
    return same
