"""A plan as columns of numbers: the form in which large plans are made, checked and timed.

One row for each instruction, program after program, each in its order. What an instruction is and
does is looked up by its code in small tables, which are made from what the classes declare; so
nothing that reads a table asks which class a row is, and a new instruction is a row here, too.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from schedcc.table.stage_numbers import StageNumbers
from schemas import (
    BufferInstruction,
    Direction,
    EpilogueInstruction,
    GroupEnd,
    GroupStart,
    Instruction,
    Phase,
    Place,
    PlanHeader,
    StageProgram,
    TransferInstruction,
)

Ints: TypeAlias = NDArray[np.int64]
Bools: TypeAlias = NDArray[np.bool_]

OPS: tuple[type[Instruction], ...] = get_args(Instruction)
"""The instructions; the code of each is its index."""

CODES = {op: code for code, op in enumerate(OPS)}

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


@dataclass(frozen=True, eq=False)
class Rows:
    """The instructions of steps as columns of equal length; `NONE` where one has no such field."""

    op: Ints
    micro_batch: Ints
    buffer: Ints
    peer: Ints
    step: Ints

    @classmethod
    def of(cls, steps: Sequence[Sequence[Instruction]]) -> "Rows":
        """The rows of steps."""
        instructions = list(chain.from_iterable(steps))
        fields = [vars(instruction) for instruction in instructions]
        lengths = _column(map(len, steps))
        return cls(
            op=_column(map(CODES.__getitem__, map(type, instructions))),
            micro_batch=_column([f.get("micro_batch", NONE) for f in fields]),
            buffer=_column([f.get("buffer", NONE) for f in fields]),
            peer=_column([f.get("peer", NONE) for f in fields]),
            step=np.repeat(np.arange(len(steps)), lengths),
        )

    @classmethod
    def joined(cls, parts: Sequence["Rows"]) -> "Rows":
        """The rows of all parts, one after the other."""
        columns = zip(*(part.columns for part in parts), strict=True)
        return cls(*(np.concatenate(column) for column in columns))

    @property
    def columns(self) -> tuple[Ints, Ints, Ints, Ints, Ints]:
        """The columns, in the order of the fields."""
        return self.op, self.micro_batch, self.buffer, self.peer, self.step

    def __len__(self) -> int:
        return len(self.op)

    def __getitem__(self, index: Any) -> "Rows":
        return Rows(*(column[index] for column in self.columns))

    def shifted(
        self, *, micro_batch: int | Ints = 0, peer: int = 0, step: int | Ints = 0
    ) -> "Rows":
        """The rows with other micro-batches, peers and steps, where they have them."""
        return replace(
            self,
            micro_batch=np.where(IS_BUFFER[self.op], self.micro_batch + micro_batch, NONE),
            peer=np.where(IS_PAIRED[self.op], self.peer + peer, NONE),
            step=self.step + step,
        )


@dataclass(frozen=True, eq=False)
class PlanTable:
    """The programs of a plan, or of some of its stages, as columns."""

    micro_batches: int
    stages: int
    num_buffers: int
    stage_ids: Ints
    """`[programs]`: the stage of each program."""
    program: Ints
    """`[rows]`: the program of each row, an index into `stage_ids`."""
    rows: Rows
    """Steps and epilogues (`step` is `NONE`)."""
    epilogues: tuple[tuple[EpilogueInstruction, ...], ...]
    """The epilogue of each program."""
    needed: Sequence[int]
    """The stages that the table is to hold: all of the pipeline, or some of them."""

    @classmethod
    def of(cls, header: PlanHeader, programs: Iterable[StageProgram]) -> "PlanTable":
        """The table of programs."""
        parts = [(p.stage_id, Rows.of(p.steps), p.epilogue) for p in programs]
        return cls.joined(header, parts)

    @classmethod
    def joined(
        cls,
        header: PlanHeader,
        parts: Sequence[tuple[int, Rows, tuple[EpilogueInstruction, ...]]],
        needed: Sequence[int] | None = None,
    ) -> "PlanTable":
        """The table of programs that are given as stage, rows of the steps, and epilogue.

        Args:
            header: What the programs are for.
            parts: The programs.
            needed: The stages that the table is to hold; default: all.
        """
        rows: list[Rows] = []
        for _, steps, epilogue in parts:
            rows += [steps, _epilogue_rows(epilogue)]
        lengths = np.array([len(part) for part in rows], dtype=np.int64)
        return cls(
            micro_batches=fitting(header.micro_batches),
            stages=fitting(header.stages),
            num_buffers=fitting(header.num_buffers),
            stage_ids=_column(stage for stage, _, _ in parts),
            program=np.repeat(np.arange(len(parts)), lengths.reshape(-1, 2).sum(axis=1)),
            rows=Rows.joined(rows) if rows else Rows.of(()),
            epilogues=tuple(epilogue for _, _, epilogue in parts),
            needed=range(fitting(header.stages)) if needed is None else needed,
        )

    @cached_property
    def stage(self) -> Ints:
        """`[rows]`: the stage of each row."""
        return self.stage_ids[self.program]

    @cached_property
    def first(self) -> Ints:
        """`[programs]`: the first row of each program."""
        return np.searchsorted(self.program, np.arange(len(self.stage_ids)))

    @cached_property
    def offset(self) -> Ints:
        """`[rows]`: the position of each row in its program."""
        return np.arange(len(self.rows)) - self.first[self.program]

    @cached_property
    def follows(self) -> Bools:
        """`[rows]`: whether the row before is of the same program."""
        same = np.zeros(len(self.rows), dtype=bool)
        same[1:] = self.program[1:] == self.program[:-1]
        return same

    @cached_property
    def inner_transfers(self) -> Ints:
        """The rows of transfers, whole or posted, between stages of the table."""
        return self._transfers[self._leads_inside]

    @cached_property
    def outer_transfers(self) -> Ints:
        """The rows of transfers, whole or posted, from and to stages that are not in the table."""
        return self._transfers[~self._leads_inside]

    @cached_property
    def _transfers(self) -> Ints:
        return np.flatnonzero(IS_TRANSFER[self.rows.op])

    @cached_property
    def _leads_inside(self) -> Bools:
        numbers = self.stage_numbers
        present = np.zeros(numbers.count, dtype=bool)
        present[numbers[self.stage_ids]] = True
        return present[numbers[self.rows.peer[self._transfers]]]

    @cached_property
    def matched(self) -> tuple[Ints, Ints, Ints]:
        """Sends, their receives, and their number in the channel, ordered by channel and number.

        The k-th send of a channel goes with its k-th receive; what has no counterpart is left out.
        """
        transfers = self.inner_transfers
        sends = IS_SEND[self.rows.op[transfers]]
        send, receive = transfers[sends], transfers[~sends]
        by_channel = [
            self._by_channel(self.stage[send], self.rows.peer[send]),
            self._by_channel(self.rows.peer[receive], self.stage[receive]),
        ]
        (send_order, send_key, number), (receive_order, receive_key, _) = by_channel
        send, receive = send[send_order], receive[receive_order]
        if np.array_equal(send_key, receive_key):
            return send, receive, number
        _, left, right = np.intersect1d(
            send_key, receive_key, assume_unique=True, return_indices=True
        )
        return send[left], receive[right], number[left]

    def _by_channel(self, source: Ints, destination: Ints) -> tuple[Ints, Ints, Ints]:
        """Transfers by channel: their order, a key of channel and number, and the number."""
        numbers = self.stage_numbers
        ids = numbers[source] * numbers.count + numbers[destination]
        order = np.argsort(ids, kind="stable")
        number = _numbered(ids[order])
        return order, ids[order] * (len(self.rows) + 1) + number, number

    @cached_property
    def stage_numbers(self) -> StageNumbers:
        """Small numbers for the stages and peers of the table."""
        peers = self.rows.peer[IS_PAIRED[self.rows.op]]
        return StageNumbers.of(np.concatenate([self.stage_ids, peers]))


def _epilogue_rows(epilogue: tuple[EpilogueInstruction, ...]) -> Rows:
    op = np.array([CODES[type(instruction)] for instruction in epilogue], dtype=np.int64)
    nothing = np.full(len(epilogue), NONE, dtype=np.int64)
    return Rows(op, nothing, nothing, nothing, nothing)


def _column(values: Iterable[int]) -> Ints:
    numbers = list(values)
    try:
        return np.array(numbers, dtype=np.int64)
    except OverflowError:
        return np.array([fitting(number) for number in numbers], dtype=np.int64)


def fitting(number: int) -> int:
    """`number`, or the nearest that leaves room to calculate: no plan has that many of anything."""
    return max(-(2**62), min(number, 2**62))


def _numbered(groups: Ints) -> Ints:
    """The position of each element within its run of equal ones."""
    position = np.arange(len(groups))
    opens = np.ones(len(groups), dtype=bool)
    opens[1:] = groups[1:] != groups[:-1]
    return position - np.maximum.accumulate(np.where(opens, position, 0))
