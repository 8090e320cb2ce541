"""A plan as columns of numbers: the form in which large plans are made, checked and timed.

One row for each instruction, program after program, each in its order.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from schedcc.table.codes import IS_PAIRED, IS_POST, IS_SEND, IS_TRANSFER, IS_WAIT, Bools, Ints
from schedcc.table.rank_numbers import RankNumbers
from schedcc.table.rows import Rows, column, fitting, same_as_before
from schemas import EpilogueInstruction, PlanHeader, RankProgram


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
            rows += [steps, Rows.of_epilogue(epilogue)]
        lengths = np.array([len(part) for part in rows], dtype=np.int64)
        return cls(
            micro_batches=fitting(header.micro_batches),
            stages=fitting(header.stages),
            ranks=fitting(header.ranks),
            placement=column(header.placement),
            num_buffers=fitting(header.num_buffers),
            rank_ids=column(rank for rank, _, _ in parts),
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
        order = splits[np.lexsort([values[splits] for values in key])]
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


def _numbered(groups: Ints) -> Ints:
    """The position of each element within its run of equal ones."""
    position = np.arange(len(groups))
    opens = np.ones(len(groups), dtype=bool)
    opens[1:] = groups[1:] != groups[:-1]
    return position - np.maximum.accumulate(np.where(opens, position, 0))
