"""Programs of any length: a short one whose middle repeats.

A schedule that promises a period has programs that repeat as well: after so many micro-batches that
the schedule is the same and every micro-batch is in the same buffer::

    M = 8    | r<0 r<1 | r.0 F0 s>0 r<2 ... | s.2 r.4 F4 s>4 r<6  s.3 r.5 F5 s>5 r<7 | ...
                      head                                 period                     tail

Where head and tail end, nobody needs to know. The programs are derived for three sizes, each a
period longer than the one before; if the second is the first with a piece put in, and the third is
the second with the same piece put in again, one period later, the piece is the period. What has not
repeated in programs of some periods is derived at full length.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from math import lcm

import numpy as np

from schedcc.derive.buffers import count_buffers
from schedcc.derive.forwards import Forwards, forwards_of
from schedcc.derive.overlap import overlapped_programs
from schedcc.derive.programs import Programs, blocking_programs
from schedcc.errors import ScheduleError
from schedcc.schedules.schedule import Overlap, Period, Schedule
from schedcc.table.codes import FIELDS, IS_BUFFER, Bools, Ints
from schedcc.table.rows import Rows

_TRIED = (2, 4, 8)
"""Periods of the shortest programs in which a repetition is looked for."""
_PERIODS_PER_BLOCK = 1024


def derived(
    schedule: Schedule, micro_batches: int, stages: int, ranks: int, *, overlap: Overlap
) -> Programs:
    """The programs of a schedule at full length.

    Raises:
        ScheduleError: the schedule makes no sense, in one sentence.
    """
    forwards = forwards_of(schedule, micro_batches, stages, ranks)
    num_buffers = buffers_of(schedule, forwards, stages, ranks)
    programs = blocking_programs(forwards, num_buffers)
    if not overlap:
        return programs
    return overlapped_programs(programs, by_channel=overlap == "channel")


def buffers_of(schedule: Schedule, forwards: Forwards | None, stages: int, ranks: int) -> int:
    """The buffers of each stage: of a schedule that repeats, one micro-batch has as many as two.

    Args:
        schedule: The schedule.
        forwards: Its picture; `None`: of no micro-batch.
        stages: S.
        ranks: R.
    """
    repeats = getattr(schedule, "period", None) is not None
    if repeats and (forwards is None or forwards.micro_batches < 2):
        with suppress(ScheduleError):  # not every schedule exists for two
            forwards = forwards_of(schedule, 2, stages, ranks)
    needed = 1 if forwards is None else count_buffers(forwards)
    if not repeats:
        return needed
    return _repeating(needed, schedule.period(stages, ranks)[0])  # type: ignore[attr-defined]


def _repeating(needed: int, period: int) -> int:
    """Buffers, of which micro-batches that are at most two periods apart have the same.

    With the fewest, taken in turn, a micro-batch and its buffer may come together again only after
    many periods (5 buffers and 6 micro-batches: 30), and a proof would have to look at all of them.
    """
    while needed % period and lcm(needed, period) > 2 * period:
        needed += 1
    return needed


@dataclass(frozen=True, eq=False)
class Repetition:
    """The programs of a schedule, of which only a short version is made."""

    programs: Programs
    """With two periods."""
    period: Period
    begins: Ints
    """`[ranks]`: the row with which the first period begins."""
    ends: Ints
    """`[ranks]`: the row behind it."""
    step: Ints
    """`[ranks]`: the step with which it begins."""
    repeats: int
    """How often the period comes."""

    @property
    def micro_batches(self) -> int:
        """M."""
        return self.programs.micro_batches + (self.repeats - 2) * self.period.micro_batches

    @property
    def steps(self) -> int:
        """The number of steps."""
        return self.programs.steps + (self.repeats - 2) * self.period.steps

    def blocks(
        self, rank: int, *, periods: int = _PERIODS_PER_BLOCK
    ) -> Iterator[tuple[Rows, int, int]]:
        """A rank's program in pieces of bounded size: rows, first step, and the step behind."""
        rows, step = self.programs.rows[rank], int(self.step[rank])
        begin, end = int(self.begins[rank]), int(self.ends[rank])
        yield rows[:begin], 0, step
        for first in range(0, self.repeats, periods):
            count = min(periods, self.repeats - first)
            number = first + np.arange(count)
            yield (
                rows[begin:end].repeated(
                    number * self.period.micro_batches, number * self.period.steps
                ),
                step + first * self.period.steps,
                step + (first + count) * self.period.steps,
            )
        later = self.repeats - 2
        tail = rows[end + (end - begin) :].repeated(
            np.array([later * self.period.micro_batches]), np.array([later * self.period.steps])
        )
        yield tail, step + self.repeats * self.period.steps, self.steps

    def rows(self, rank: int) -> Rows:
        """All rows of a rank's program."""
        return Rows.joined([rows for rows, _, _ in self.blocks(rank)])


def repetition(
    schedule: Schedule, micro_batches: int, stages: int, ranks: int, *, overlap: Overlap
) -> Repetition | None:
    """How the programs of a schedule repeat; `None` where they do not, or are too short to.

    Raises:
        ScheduleError: the schedule makes no sense, in one sentence.
    """
    promised = getattr(schedule, "period", None)
    if promised is None:
        return None
    once = Period(*promised(stages, ranks))
    for periods in _TRIED:
        few = periods * once.micro_batches + 1
        if few > micro_batches:
            return None
        num_buffers = buffers_of(schedule, forwards_of(schedule, few, stages, ranks), stages, ranks)
        times = lcm(once.micro_batches, num_buffers) // once.micro_batches
        period = Period(times * once.micro_batches, times * once.steps)
        shortest = periods * period.micro_batches + micro_batches % period.micro_batches
        if micro_batches < shortest + 2 * period.micro_batches:
            return None
        short = [
            derived(schedule, shortest + n * period.micro_batches, stages, ranks, overlap=overlap)
            for n in range(3)
        ]
        repeats = (micro_batches - shortest) // period.micro_batches
        if found := _found(short, period, repeats):
            return found
    return None


class _Columns:
    """The programs of all ranks as one matrix, to be compared at once."""

    def __init__(self, programs: Programs) -> None:
        rows = Rows.joined(programs.rows)
        lengths = np.array([len(part) for part in programs.rows])
        self.matrix = np.stack(rows.columns)
        """`[columns, rows]`, as `Rows.columns`."""
        self.length, self.start = lengths, np.cumsum(lengths) - lengths
        self.rank = np.repeat(np.arange(len(lengths)), lengths)
        self.offset = np.arange(len(rows)) - self.start[self.rank]
        self.step = rows.step
        self.is_buffer = IS_BUFFER[rows.op]

    def later(self, period: Period, which: Bools) -> Ints:
        """The matrix, with some rows a period later."""
        moved = self.matrix.copy()
        moved[_MICRO_BATCH] += np.where(which & self.is_buffer, period.micro_batches, 0)
        moved[_STEP] += np.where(which, period.steps, 0)
        return moved

    def at(self, rank: Ints, offset: Ints) -> Ints:
        """Columns of rows, of which each has to be in its rank's program."""
        return self.matrix[:, self.start[rank] + offset]


_MICRO_BATCH, _STEP = 1 + FIELDS.index("micro_batch"), -1


def _found(short: list[Programs], period: Period, repeats: int) -> Repetition | None:
    """The repetition in programs that are each a period longer than the one before."""
    if len({programs.num_buffers for programs in short}) > 1:
        return None
    if any(b.steps != a.steps + period.steps for a, b in pairwise(short)):
        return None
    first, second, third = map(_Columns, short)
    piece = second.length - first.length
    if (piece < 0).any() or not np.array_equal(third.length, second.length + piece):
        return None
    begins, step = _cut(first, second)
    ends = begins + piece
    inside = (second.offset >= begins[second.rank]) & (second.offset < ends[second.rank])
    again = third.at(second.rank[inside], (second.offset + piece[second.rank])[inside])
    if (
        _put_in(first, second, begins, piece, period)
        and _put_in(second, third, ends, piece, period)
        and np.array_equal(second.later(period, inside)[:, inside], again)
    ):
        return Repetition(short[-1], period, begins, ends, step, repeats)
    return None


def _cut(first: _Columns, second: _Columns) -> tuple[Ints, Ints]:
    """For each rank the first row of the step in which the two differ, and the step."""
    same = (first.matrix == second.at(first.rank, first.offset)).all(axis=0)
    differ = np.where(same, first.length[first.rank], first.offset)
    at = np.minimum.reduceat(differ, first.start)
    ended = at == first.length
    rows = first.start + np.minimum(at, first.length - 1)
    others = second.start + np.minimum(at, second.length - 1)
    step = np.where(ended, second.step[others], np.minimum(first.step[rows], second.step[others]))
    before = first.step < step[first.rank]
    return np.bincount(first.rank, before, minlength=len(step)).astype(np.int64), step


def _put_in(shorter: _Columns, longer: _Columns, cut: Ints, piece: Ints, period: Period) -> bool:
    """Whether the longer programs are the shorter ones with a piece put in at the cut."""
    behind = shorter.offset >= cut[shorter.rank]
    offset = shorter.offset + np.where(behind, piece[shorter.rank], 0)
    return np.array_equal(shorter.later(period, behind), longer.at(shorter.rank, offset))
