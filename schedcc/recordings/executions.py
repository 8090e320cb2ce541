"""What a rank executed in one run, as columns: a few dozen bytes for each instruction."""

from array import array
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from schedcc.io.plan_columns import ProgramColumns
from schedcc.table.codes import IS_POST, IS_SEND, IS_WAIT, NONE, Bools, Ints
from schedcc.table.rows import Rows
from schemas import Placed


class Execution(NamedTuple):
    """One instruction that was entered; times are in nanoseconds, common to all ranks."""

    placed: Placed
    start: int
    end: int | None
    """`None`: it was never left."""
    nbytes: int | None
    """Of the activation that it moved, if that is recorded."""


class Executions:
    """The instructions that were entered, in their order.

    Most are what the rank's recorded plan has at their offset, and are kept as this offset; the
    others are kept as they are.
    """

    def __init__(self, program: ProgramColumns | None) -> None:
        """None yet, of this program."""
        self._program = program
        self._offset, self._start, self._end, self._nbytes = (array("q") for _ in range(4))
        self._others: dict[int, Placed] = {}
        self.is_open = False
        """Whether the last one was entered and not left."""

    def __len__(self) -> int:
        return len(self._offset)

    def extend(
        self,
        offset: Sequence[int],
        start: Sequence[int],
        end: Sequence[int],
        nbytes: Sequence[int],
    ) -> None:
        """Add instructions of the program that were entered and left."""
        self._offset.extend(offset)
        self._start.extend(start)
        self._end.extend(end)
        self._nbytes.extend(nbytes)

    def enter(self, placed: Placed, start: int, *, planned: bool) -> None:
        """Add an instruction that has not been left; `planned`: the program has it there."""
        if not planned:
            self._others[len(self)] = placed
        self.extend([placed.offset], [start], [NONE], [NONE])
        self.is_open = True

    def leave(self, end: int, nbytes: int = NONE) -> None:
        """Note that the last one was left."""
        self._end[-1], self._nbytes[-1], self.is_open = end, nbytes, False

    def has_planned(self, placed: Placed) -> bool:
        """Whether the program has this instruction at its place."""
        program = self._program
        if program is None or placed.offset >= len(program):
            return False
        return program.placed(placed.offset) == placed

    def placed(self, position: int) -> Placed:
        """The instruction at a position, which may be counted from the end."""
        position = range(len(self))[position]
        if position in self._others:
            return self._others[position]
        assert self._program is not None
        return self._program.placed(self._offset[position])

    def __iter__(self) -> Iterator[Execution]:
        own = [] if self._program is None else list(self._program.program().placed())
        for position, offset in enumerate(self._offset):
            other = self._others.get(position)
            yield self._execution(position, own[offset] if other is None else other)

    def _execution(self, position: int, placed: Placed) -> Execution:
        inside = self.is_open and position == len(self) - 1
        end, nbytes = self._end[position], self._nbytes[position]
        return Execution(
            placed,
            self._start[position],
            end=None if inside else end,
            nbytes=None if nbytes == NONE else nbytes,
        )

    @property
    def inside(self) -> Execution | None:
        """The one that was entered and not left."""
        return self._execution(len(self) - 1, self.placed(-1)) if self.is_open else None

    @property
    def last_offset(self) -> int:
        """The offset of the last one."""
        return self._offset[-1]

    @property
    def offset(self) -> Ints:
        """`[instructions]`: positions in the program."""
        return _column(self._offset)

    @property
    def start(self) -> Ints:
        """`[instructions]`: nanoseconds, common to all ranks."""
        return _column(self._start)

    @property
    def end(self) -> Ints:
        """`[instructions]`: nanoseconds; `NONE`: never left."""
        return _column(self._end)

    @property
    def nbytes(self) -> Ints:
        """`[instructions]`: bytes of the activation that was moved; `NONE`: not recorded."""
        return _column(self._nbytes)

    @property
    def left(self) -> Bools:
        """`[instructions]`: whether each was left; times before the epoch are none."""
        left = np.ones(len(self), dtype=bool)
        left[-1:] = not self.is_open
        return left

    @cached_property
    def rows(self) -> Rows:
        """What was executed; to be asked for when everything has been added."""
        others = np.fromiter(self._others, dtype=np.int64)
        offset = self.offset.copy()
        offset[others] = 0
        planned = Rows.of(()) if self._program is None else _whole(self._program)
        if len(planned) == 0:
            planned = Rows.of([[p.instruction] for p in [*self._others.values()][:1]])
        found = planned[offset]
        own = Rows.of([[p.instruction] for p in self._others.values()])
        for column, new in zip(found.columns, own.columns, strict=True):
            column[others] = new
        found.step[others] = [NONE if p.step is None else p.step for p in self._others.values()]
        return found

    @cached_property
    def late(self) -> Bools:
        """`[instructions]`: whether each posts a receive later than the program has it.

        The runtime does so until it knows that the data holds the micro-batch, and in any case
        before it waits for the message and before it posts the next receive: what it receives is
        the same. Receives that change places are not late but wrong: each gets the other's message.
        """
        rows, offset = self.rows, self.offset
        receives = ~IS_SEND[rows.op]
        posted = IS_POST[rows.op] & receives
        in_turn: Bools = offset == np.maximum.accumulate(np.where(posted, offset, NONE))
        late: Bools = posted & in_turn & (offset < np.maximum.accumulate(offset))
        waits = np.flatnonzero(IS_WAIT[rows.op] & receives)
        if late.any() and len(waits):
            what = rows.micro_batch.astype(np.int64) * (rows.stage.max(initial=0) + 1) + rows.stage
            waits = waits[np.argsort(what[waits], kind="stable")]
            posts = np.flatnonzero(late)
            found = np.searchsorted(what[waits], what[posts]).clip(max=len(waits) - 1)
            first = waits[found]
            late[posts[(what[first] == what[posts]) & (first < posts)]] = False
        return late

    @cached_property
    def in_order(self) -> Ints:
        """`[instructions]`: their positions, with late posts where the program has them."""
        key = np.maximum.accumulate(np.where(self.late, -1, self.offset))
        key[self.late] = self.offset[self.late]
        return np.argsort(2 * key + self.late, kind="stable")


def _whole(program: ProgramColumns) -> Rows:
    epilogue = Rows.of([[instruction] for instruction in program.epilogue])
    epilogue.step[:] = NONE
    return Rows.joined([program.rows, epilogue])


def _column(values: "array[int]") -> Ints:
    return np.frombuffer(values, dtype=np.int64) if len(values) else np.zeros(0, dtype=np.int64)
