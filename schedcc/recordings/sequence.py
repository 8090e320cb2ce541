"""The sequence of a recorded run, against that of its plan."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from schedcc.io.plan_columns import placed
from schedcc.recordings.executions import Executions
from schedcc.recordings.recording import RankRecording
from schedcc.recordings.run_graph import existing
from schedcc.table.codes import NONE, Bools, Ints
from schedcc.table.rows import Rows
from schedcc.table.table import PlanTable
from schemas import EpilogueInstruction, Placed
from schemas.reports.conformance import Deviation


@dataclass(frozen=True, eq=False)
class Planned:
    """The program that a rank was to execute."""

    micro_batches: int
    placement: tuple[int, ...]
    rows: Rows
    epilogue: tuple[EpilogueInstruction, ...]
    """The instructions of the last rows."""

    @classmethod
    def of(cls, table: PlanTable, rank: int) -> "Planned":
        """The program of a rank that the table has."""
        (program,) = np.flatnonzero(table.rank_ids == rank)
        own = table.program == program
        placement = tuple(table.placement.tolist())
        return cls(table.micro_batches, placement, table.rows[own], table.epilogues[program])

    def __len__(self) -> int:
        return len(self.rows)

    def placed(self, offset: int) -> Placed:
        """The instruction at a position."""
        of_end = offset - len(self)
        if of_end >= -len(self.epilogue):
            return Placed(offset, None, self.epilogue[of_end])
        return placed(self.rows, offset)

    def existing(self, micro_batches: int) -> Bools:
        """`[instructions]`: whether each is none of a micro-batch beyond the first ones."""
        return existing(self.rows, micro_batches)


def compared(
    rank: RankRecording, number: int, planned: Planned, micro_batches: int | None
) -> Iterator[Deviation | str]:
    """Compare a rank's run up to the first difference: after it, all others follow from it.

    Where the data held fewer micro-batches than the plan, instructions of later ones are skipped;
    until a rank knew, it may have entered some of them, in their order. Receives may be posted
    later than planned, see `Executions.late`.
    """
    run = rank.run(number)
    executed = Executions(None) if run is None else run.executed

    def deviation(step: int | None, message: str) -> Deviation:
        return Deviation(
            code="sequence", message=message, rank=rank.header.rank, run=number, step=step
        )

    if run is not None and run.plan is not None:
        found, needed = run.plan.header.micro_batches, planned.micro_batches
        if found != needed:
            message = f"executed a plan for M = {found}, the given one is for M = {needed}"
            yield deviation(None, message)
            return
        placement = run.plan.header.placement
        if len(placement) == len(planned.placement) and placement != planned.placement:
            message = f"executed a plan with its stages on ranks {_listed(placement)}"
            yield deviation(None, f"{message}, in the given one {_listed(planned.placement)}")
            return
    count = planned.micro_batches if micro_batches is None else micro_batches
    told = len(executed) if run is None or run.told is None else run.told
    if executed.late.any():
        told = int(np.flatnonzero(executed.in_order < told)[-1]) + 1 if told else 0
        yield (
            f"{rank.name}, run {number}: receives that were posted later than planned, when their "
            f"micro-batches were known: {executed.late.sum()}"
        )
    exists = planned.existing(count)
    position, due = _followed(executed, planned, exists, told)
    if position < len(executed):
        entered = int(executed.in_order[position])
        done = executed.placed(entered)
        if due is None:
            yield deviation(done.step, f"executed {_in_full(done)} after the end of the plan")
            return
        wanted = f"the plan has {_in_full(planned.placed(due))}"
        if position >= told and not existing(executed.rows[[entered]], count).all():
            wanted = f"though it knew that the data ends after {count} micro-batches"
        yield deviation(done.step, f"executed {_in_full(done)}, {wanted}")
    elif run is None or run.end is None:
        yield (
            f"{rank.name}, run {number}: cut short; the {len(executed)} of {exists.sum()} "
            "instructions that it entered are a prefix of the plan"
        )
    elif due is not None:
        missed = planned.placed(due)
        yield deviation(missed.step, f"the run ended without {_in_full(missed)}")


def _followed(
    executed: Executions, planned: Planned, exists: Bools, told: int
) -> tuple[int, int | None]:
    """How far a run followed its plan.

    Returns:
        The number of instructions that are the plan's, and the offset of the next one that was
        due; `None`: there is none.
    """
    same = _Same(executed, planned)
    due = position = same.prefix(np.arange(len(planned)), 0, told)
    while position < told and due < len(planned):
        if same.at(due, position):
            position += 1
        elif exists[due]:
            break
        due += 1
    left = due + np.flatnonzero(exists[due:])
    if position == told:
        followed = same.prefix(left, position, len(executed))
        position, left = position + followed, left[followed:]
    elif position < told and due < len(planned):
        return position, due
    return position, int(left[0]) if len(left) else None


@dataclass(frozen=True)
class _Same:
    """Compares what was executed with what was planned."""

    executed: Executions
    planned: Planned

    @cached_property
    def _rows(self) -> Rows:
        """What was executed, with late posts where the plan has them."""
        return self.executed.rows[self.executed.in_order]

    @cached_property
    def _results(self) -> set[int]:
        """Positions that hold an instruction of an epilogue, whose fields have no columns."""
        return set(np.flatnonzero(self._rows.step == NONE).tolist())

    def prefix(self, offsets: Ints, position: int, stop: int) -> int:
        """How many executed instructions from `position` to `stop` - 1 are those at `offsets`."""
        count = min(len(offsets), stop - position)
        done = self._rows[position : position + count]
        due = self.planned.rows[offsets[:count]]
        pairs = zip(done.columns, due.columns, strict=True)
        differs = ~np.logical_and.reduce([a == b for a, b in pairs])
        most = int(np.argmax(differs)) if differs.any() else count
        for other in sorted(self._results):
            if position <= other < position + most and not self._equal(
                int(offsets[other - position]), other
            ):
                return other - position
        return most

    def at(self, offset: int, position: int) -> bool:
        """Whether the instruction at `position` is the one at `offset` of the plan."""
        return self.prefix(np.array([offset]), position, position + 1) == 1

    def _placed(self, position: int) -> Placed:
        return self.executed.placed(int(self.executed.in_order[position]))

    def _equal(self, offset: int, position: int) -> bool:
        due, done = self.planned.placed(offset), self._placed(position)
        return (due.step, due.instruction) == (done.step, done.instruction)


def _listed(placement: tuple[int, ...]) -> str:
    more = ", ..." if len(placement) > _SHOWN else ""
    return ", ".join(map(str, placement[:_SHOWN])) + more


_SHOWN = 16
"""Stages whose ranks are listed in a message."""


def _in_full(placed: Placed) -> str:
    return f"{placed.instruction!r} ({placed.where})"
