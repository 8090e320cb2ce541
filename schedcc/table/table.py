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

from schedcc.table.rank_numbers import RankNumbers
from schemas import (
    BufferInstruction,
    CopyActivation,
    Direction,
    EpilogueInstruction,
    GroupEnd,
    GroupStart,
    Instruction,
    Phase,
    Place,
    PlanHeader,
    RankProgram,
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
        lengths = _column(map(len, steps))
        return cls(
            op=_column(map(CODES.__getitem__, map(type, instructions))),
            **{name: _column([f.get(name, NONE) for f in fields]) for name in FIELDS},
            step=np.repeat(np.arange(len(steps)), lengths),
        )

    @classmethod
    def joined(cls, parts: Sequence["Rows"]) -> "Rows":
        """The rows of all parts, one after the other."""
        names = ("op", *FIELDS, "step")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    @property
    def columns(self) -> tuple[Ints, ...]:
        """The columns, in the order of the fields."""
        own = (self.stage, self.micro_batch, self.buffer, self.peer, self.peer_buffer)
        return self.op, *own, self.step

    def __len__(self) -> int:
        return len(self.op)

    def __getitem__(self, index: Any) -> "Rows":
        return Rows(*(column[index] for column in self.columns))

    def repeated(self, micro_batches: Ints, steps: Ints) -> "Rows":
        """Copies of the rows, each later by a number of micro-batches and of steps."""
        length, copies = len(self), len(steps)
        tiled = Rows(*(np.tile(column, copies) for column in self.columns))
        later = np.repeat(micro_batches, length)
        return replace(
            tiled,
            micro_batch=np.where(IS_BUFFER[tiled.op], tiled.micro_batch + later, NONE),
            step=tiled.step + np.repeat(steps, length),
        )


@dataclass(frozen=True, eq=False)
class PlanTable:
    """The programs of a plan, or of some of its ranks, as columns."""

    micro_batches: int
    stages: int
    ranks: int
    placement: Ints
    """`[stages]`: the rank of each stage; empty where every rank has one stage."""
    num_buffers: int
    rank_ids: Ints
    """`[programs]`: the rank of each program."""
    program: Ints
    """`[rows]`: the program of each row, an index into `rank_ids`."""
    rows: Rows
    """Steps and epilogues (`step` is `NONE`)."""
    epilogues: tuple[tuple[EpilogueInstruction, ...], ...]
    """The epilogue of each program."""

    @classmethod
    def of(cls, header: PlanHeader, programs: Iterable[RankProgram]) -> "PlanTable":
        """The table of programs."""
        return cls.joined(header, [(p.rank, Rows.of(p.steps), p.epilogue) for p in programs])

    @classmethod
    def joined(
        cls,
        header: PlanHeader,
        parts: Sequence[tuple[int, Rows, tuple[EpilogueInstruction, ...]]],
    ) -> "PlanTable":
        """The table of programs that are given as rank, rows of the steps, and epilogue."""
        rows: list[Rows] = []
        for _, steps, epilogue in parts:
            rows += [steps, _epilogue_rows(epilogue)]
        lengths = np.array([len(part) for part in rows], dtype=np.int64)
        return cls(
            micro_batches=fitting(header.micro_batches),
            stages=fitting(header.stages),
            ranks=fitting(header.ranks),
            placement=_column(header.placement),
            num_buffers=fitting(header.num_buffers),
            rank_ids=_column(rank for rank, _, _ in parts),
            program=np.repeat(np.arange(len(parts)), lengths.reshape(-1, 2).sum(axis=1)),
            rows=Rows.joined(rows) if rows else Rows.of(()),
            epilogues=tuple(epilogue for _, _, epilogue in parts),
        )

    @property
    def is_one_to_one(self) -> bool:
        """Whether stage `s` is on rank `s`, and nothing else there."""
        identity = np.arange(len(self.placement))
        return self.ranks == self.stages and np.array_equal(self.placement, identity)

    @property
    def header(self) -> PlanHeader:
        """What the programs are for."""
        return PlanHeader.model_construct(
            format="",
            micro_batches=self.micro_batches,
            stages=self.stages,
            ranks=self.ranks,
            placement=tuple(self.placement.tolist()),
            num_buffers=self.num_buffers,
        )

    @cached_property
    def rank(self) -> Ints:
        """`[rows]`: the rank of each row."""
        return self.rank_ids[self.program]

    @cached_property
    def peer_rank(self) -> Ints:
        """`[rows]`: the rank of the peer, where a row has one."""
        return self.rank_of(self.rows.peer)

    def rank_of_one(self, stage_id: int) -> int:
        """The rank of a stage."""
        return int(self.rank_of(np.array([fitting(stage_id)]))[0])

    def rank_of(self, stages: Ints) -> Ints:
        """The ranks of stages, as `PlanHeader.rank_of` has them."""
        placed = len(self.placement)
        if placed == 0:
            return stages
        known = (stages >= 0) & (stages < placed)
        beyond = np.minimum(stages - placed, 2**62 - self.ranks) + self.ranks
        beyond = np.where(stages < 0, stages, beyond)
        found: Ints = np.where(known, self.placement[np.where(known, stages, 0)], beyond)
        return found

    @cached_property
    def first(self) -> Ints:
        """`[programs]`: the first row of each program."""
        return np.searchsorted(self.program, np.arange(len(self.rank_ids)))

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
    def transfers(self) -> Ints:
        """The rows of transfers, whole or posted."""
        return np.flatnonzero(IS_TRANSFER[self.rows.op])

    @cached_property
    def matched(self) -> tuple[Ints, Ints, Ints]:
        """Sends, their receives, and their number in the channel, ordered by channel and number.

        The k-th send of a channel goes with its k-th receive; what has no counterpart is left out.
        """
        transfers = self.transfers
        sends = IS_SEND[self.rows.op[transfers]]
        send, receive = transfers[sends], transfers[~sends]
        by_channel = [
            self._by_channel(self.rank[send], self.peer_rank[send]),
            self._by_channel(self.peer_rank[receive], self.rank[receive]),
        ]
        (send_order, send_key, number), (receive_order, receive_key, _) = by_channel
        send, receive = send[send_order], receive[receive_order]
        if np.array_equal(send_key, receive_key):
            return send, receive, number
        _, left, right = np.intersect1d(
            send_key, receive_key, assume_unique=True, return_indices=True
        )
        return send[left], receive[right], number[left]

    @cached_property
    def splits(self) -> tuple[Ints, Ints]:
        """Posts and their waits: each wait with the latest post of its stages and micro-batch."""
        rows, op = self.rows, self.rows.op
        splits = np.flatnonzero(IS_POST[op] | IS_WAIT[op])
        key = (rows.peer, rows.stage, rows.micro_batch, IS_SEND[op], self.program)
        order = splits[np.lexsort([column[splits] for column in key])]
        same = same_as_before(order, *key)
        same[1:] &= IS_WAIT[op[order[1:]]] & IS_POST[op[order[:-1]]]
        position = np.flatnonzero(same)
        return order[position - 1], order[position]

    def _by_channel(self, source: Ints, destination: Ints) -> tuple[Ints, Ints, Ints]:
        """Transfers by channel: their order, a key of channel and number, and the number."""
        numbers = self.rank_numbers
        ids = numbers[source] * numbers.count + numbers[destination]
        order = np.argsort(ids, kind="stable")
        number = _numbered(ids[order])
        return order, ids[order] * (len(self.rows) + 1) + number, number

    @cached_property
    def rank_numbers(self) -> RankNumbers:
        """Small numbers for the ranks of the table and of the peers in it."""
        peers = self.peer_rank[IS_PAIRED[self.rows.op]]
        return RankNumbers.of(np.concatenate([self.rank_ids, peers]))


def _epilogue_rows(epilogue: tuple[EpilogueInstruction, ...]) -> Rows:
    op = np.array([CODES[type(instruction)] for instruction in epilogue], dtype=np.int64)
    nothing = np.full(len(epilogue), NONE, dtype=np.int64)
    return Rows(op, *(len(FIELDS) + 1) * [nothing])


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


def same_as_before(order: Ints, *columns: Ints | Bools) -> Bools:
    """Whether each row in `order` has the same values in the columns as the one before it."""
    same = np.zeros(len(order), dtype=bool)
    same[1:] = True
    for column in columns:
        same[1:] &= column[order[1:]] == column[order[:-1]]
    return same
