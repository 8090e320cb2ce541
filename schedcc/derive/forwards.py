"""A schedule's picture for given M, S and R, as numbers that make sense."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from schedcc.errors import ScheduleError
from schedcc.schedules.schedule import Schedule
from schedcc.table.codes import Ints
from schedcc.table.ranges import gaps, in_words, needed


@dataclass(frozen=True, eq=False)
class Forwards:
    """Which stage is where, and when it forwards what."""

    schedule: str
    ranks: int
    placement: Ints
    """`[stages]`: the rank of each stage."""
    step: Ints
    """`[stages, micro_batches]`: the step in which a stage forwards a micro-batch."""

    @property
    def stages(self) -> int:
        """S."""
        return len(self.step)

    @property
    def micro_batches(self) -> int:
        """M."""
        return self.step.size // len(self.step)

    @property
    def steps(self) -> int:
        """The number of steps."""
        return int(self.step.max()) + 1


def placement_of(schedule: Schedule, stages: int, ranks: int) -> tuple[int, ...]:
    """The rank of each stage.

    Raises:
        ScheduleError: the schedule names other than R ranks, each at least once, for S stages.
    """
    found: Sequence[Any] = schedule.placement(stages, ranks)
    name = f"the placement of {schedule.name!r}"
    try:
        placement = [*map(_integer, found)]
    except TypeError:
        raise ScheduleError(f"{name} is {found!r}, needed a list of {stages} ranks") from None
    if len(placement) != stages:
        raise ScheduleError(f"{name} lists {len(placement)} stages, needed {stages}")
    for stage, rank in enumerate(placement):
        if not 0 <= rank < ranks:
            raise ScheduleError(f"{name} puts stage {stage} on rank {rank}, {needed(ranks)}")
    if empty := gaps(placement, ranks):
        raise ScheduleError(
            f"{name} puts no stage on {in_words('rank', empty)}, needed one on each"
        )
    return tuple(placement)


def forwards_of(schedule: Schedule, micro_batches: int, stages: int, ranks: int) -> Forwards:
    """The picture of a schedule.

    Raises:
        ScheduleError: it is none, in one sentence.
    """
    placement = np.array(placement_of(schedule, stages, ranks), dtype=np.int64)
    rows = _rows(schedule, micro_batches, stages, ranks)
    step, stage, micro_batch = rows.T
    name = repr(schedule.name)
    for noun, column, count in (
        ("stage", stage, stages),
        ("micro-batch", micro_batch, micro_batches),
    ):
        wrong = np.flatnonzero((column < 0) | (column >= count))
        if len(wrong):
            raise ScheduleError(f"{name} forwards {noun} {column[wrong[0]]}, {needed(count)}")
    if len(step) and int(step.min()) < 0:
        raise ScheduleError(f"{name} forwards in step {step.min()}, needed 0 or later")
    times = np.bincount(stage * micro_batches + micro_batch, minlength=stages * micro_batches)
    if (times != 1).any():
        where = divmod(int(np.flatnonzero(times != 1)[0]), micro_batches)
        raise ScheduleError(
            f"{name} forwards micro-batch {where[1]} on stage {where[0]} "
            f"{times[times != 1][0]} times, needed once"
        )
    grid = np.empty((stages, micro_batches), dtype=np.int64)
    grid[stage, micro_batch] = step
    _require_order(name, grid, placement)
    return Forwards(str(schedule.name), ranks, placement, grid)


def _rows(schedule: Schedule, micro_batches: int, stages: int, ranks: int) -> Ints:
    found = schedule.forwards(micro_batches, stages, ranks)
    if isinstance(found, np.ndarray) and np.issubdtype(found.dtype, np.integer):
        found = found.astype(np.int64)
        if found.ndim == 2 and found.shape[1] == 3:
            return found
    what = f"the forwards of {schedule.name!r}"
    try:
        rows = [tuple(map(_integer, row)) for row in found]
        bad = next((row for row in rows if len(row) != 3), None)
    except TypeError:
        raise ScheduleError(f"{what} are no rows of integers (step, stage, micro_batch)") from None
    if bad is not None:
        raise ScheduleError(f"{what} have the row {bad}, needed (step, stage, micro_batch)")
    try:
        flat = np.fromiter(chain.from_iterable(rows), dtype=np.int64, count=3 * len(rows))
    except OverflowError:
        raise ScheduleError(f"{what} have a number beyond 64 bits") from None
    return flat.reshape(-1, 3)


def _integer(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError
    return int(value)


def _require_order(name: str, grid: Ints, placement: Ints) -> None:
    """Data flows from stage to stage, micro-batches come in order, a rank does one at a time."""
    early = np.argwhere(np.diff(grid, axis=0) <= 0)
    if len(early):
        stage, m = early[0]
        raise ScheduleError(
            f"{name} forwards micro-batch {m} on stage {stage + 1} in step {grid[stage + 1, m]}, "
            f"needed a step after {grid[stage, m]}, in which stage {stage} does"
        )
    early = np.argwhere(np.diff(grid, axis=1) <= 0)
    if len(early):
        stage, m = early[0]
        raise ScheduleError(
            f"{name} forwards micro-batch {m + 1} on stage {stage} in step {grid[stage, m + 1]}, "
            f"needed a step after {grid[stage, m]}, that of micro-batch {m}"
        )
    busy = np.sort((placement[:, None] + grid * (int(placement.max()) + 1)).ravel())
    twice = np.flatnonzero(busy[1:] == busy[:-1])
    if len(twice):
        step, rank = divmod(int(busy[twice[0]]), int(placement.max()) + 1)
        raise ScheduleError(
            f"{name} has two forwards on rank {rank} in step {step}, needed one at most"
        )
