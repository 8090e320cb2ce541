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
from dataclasses import dataclass, replace
from math import lcm

import numpy as np

from schedcc.derive.buffers import count_buffers
from schedcc.derive.forwards import forwards_of
from schedcc.derive.overlap import overlapped_programs
from schedcc.derive.programs import Programs, blocking_programs
from schedcc.schedules.schedule import Period, Schedule
from schedcc.table.table import IS_BUFFER, NONE, Ints, Rows

_TRIED = (2, 4, 8)
"""Periods of the shortest programs in which a repetition is looked for."""
_PERIODS_PER_BLOCK = 1024


def derived(
    schedule: Schedule, micro_batches: int, stages: int, ranks: int, *, overlap: bool
) -> Programs:
    """The programs of a schedule at full length.

    Raises:
        ScheduleError: the schedule makes no sense, in one sentence.
    """
    programs = blocking_programs(forwards_of(schedule, micro_batches, stages, ranks))
    return overlapped_programs(programs) if overlap else programs


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

    def blocks(self, rank: int) -> Iterator[tuple[Rows, int, int]]:
        """A rank's program in pieces of bounded size: rows, first step, and the step behind."""
        rows, step = self.programs.rows[rank], int(self.step[rank])
        begin, end = int(self.begins[rank]), int(self.ends[rank])
        yield rows[:begin], 0, step
        for first in range(0, self.repeats, _PERIODS_PER_BLOCK):
            count = min(_PERIODS_PER_BLOCK, self.repeats - first)
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
    schedule: Schedule, micro_batches: int, stages: int, ranks: int, *, overlap: bool
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
        num_buffers = count_buffers(forwards_of(schedule, few, stages, ranks))
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


def _found(short: list[Programs], period: Period, repeats: int) -> Repetition | None:
    """The repetition in programs that are each a period longer than the one before."""
    first, second, third = short
    if len({programs.num_buffers for programs in short}) > 1:
        return None
    if any(b.steps != a.steps + period.steps for a, b in ((first, second), (second, third))):
        return None
    cut, step = _cut(first, second)
    longer = np.array([len(rows) for rows in second.rows]) - [len(rows) for rows in first.rows]
    pieces_fit = _put_in(first, second, cut, longer, period)
    if not pieces_fit or not _put_in(second, third, cut + longer, longer, period):
        return None
    if not _alike(third, cut, cut + longer, longer, period):
        return None
    return Repetition(third, period, cut, cut + longer, step, repeats)


def _cut(first: Programs, second: Programs) -> tuple[Ints, Ints]:
    """For each rank the first row of the step in which the two differ, and the step."""
    cut, steps = [], []
    for one, other in zip(first.rows, second.rows, strict=True):
        length = min(len(one), len(other))
        differ = _differ(one[:length], other[:length])
        at = int(differ[0]) if len(differ) else length
        step = int(min(rows.step[at] for rows in (one, other) if at < len(rows)))
        cut.append(int(np.searchsorted(one.step, step)))
        steps.append(step)
    return np.array(cut), np.array(steps)


def _put_in(
    shorter: Programs, longer: Programs, cut: Ints, more: Ints, period: Period
) -> bool:
    """Whether the longer programs are the shorter ones with a piece put in at the cut."""
    return all(
        len(other) == len(one) + piece
        and len(_differ(one[:at], other[:at])) == 0
        and len(_differ(_later(one[at:], period), other[at + piece :])) == 0
        for one, other, at, piece in zip(
            shorter.rows, longer.rows, cut.tolist(), more.tolist(), strict=True
        )
    )


def _alike(programs: Programs, begin: Ints, again: Ints, length: Ints, period: Period) -> bool:
    """Whether two pieces of each program are the same, one a period later."""
    return all(
        len(_differ(_later(rows[a : a + size], period), rows[b : b + size])) == 0
        for rows, a, b, size in zip(
            programs.rows, begin.tolist(), again.tolist(), length.tolist(), strict=True
        )
    )


def _later(rows: Rows, period: Period) -> Rows:
    moved = np.where(IS_BUFFER[rows.op], rows.micro_batch + period.micro_batches, NONE)
    return replace(rows, micro_batch=moved, step=rows.step + period.steps)


def _differ(one: Rows, other: Rows) -> Ints:
    """The rows in which two parts of a program differ."""
    if len(one) != len(other):
        return np.arange(max(len(one), len(other)))
    same = np.ones(len(one), dtype=bool)
    for column, like in zip(one.columns, other.columns, strict=True):
        same &= column == like
    return np.flatnonzero(~same)
