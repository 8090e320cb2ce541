"""What a picture shows: one plan or run, as boxes of ranks over time.

Nothing here computes a time. Predicted ones come from `schedcc.simulation`, recorded ones from
`schedcc.recordings`, and where there are none the steps are the axis.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np

from schedcc.analysis.levels import Seconds
from schedcc.table.codes import IS_FORWARD, Bools, Ints
from schedcc.table.table import PlanTable
from schemas.reports.breakdown import Breakdown

Severity = Literal["error", "warning"]
Unit = Literal["seconds", "steps"]


class Mark(NamedTuple):
    """Something to look at: a finding of a check, an error of a run."""

    text: str
    severity: Severity
    rank: int | None = None
    """`None`: it is of all ranks."""
    start: float | None = None
    """`None`: it has no place in the picture, as `end`."""
    end: float | None = None


class Phase(NamedTuple):
    """A part of the pipeline's run."""

    name: str
    start: float
    end: float


@dataclass(frozen=True, eq=False)
class Boxes:
    """The instructions of a panel in their order on each rank, rank after rank."""

    table: PlanTable
    start: Seconds
    """`[rows]`, in the panel's unit."""
    end: Seconds
    """`[rows]`: as in `schemas.Span` where it is predicted; where it is recorded, when the rank
    left the instruction."""
    run: Ints
    """`[rows]`: the run of each; 0 of what is no recording."""


@dataclass(frozen=True, eq=False)
class Arrows:
    """The transfers, each from its send to its receive."""

    send: Ints
    """`[transfers]`: rows of sends, whole or posted."""
    receive: Ints
    """`[transfers]`: rows of receives, whole or posted."""
    end: Seconds
    """`[transfers]`: when the receiver had the activation."""


@dataclass(frozen=True, eq=False)
class Panel:
    """One plan or one run, to be drawn as a band for each rank."""

    title: str
    note: str
    """A line below the title."""
    unit: Unit
    length: float
    """Of the time axis, which begins at 0."""
    unit_of_rank: Literal["stage", "rank"]
    boxes: Boxes
    arrows: Arrows
    marks: tuple[Mark, ...] = ()
    breakdown: Breakdown | None = None
    """`None` where there are no times."""

    @cached_property
    def ranks(self) -> list[int]:
        """The ranks that are drawn, in their order."""
        return sorted({*self.boxes.table.rank_ids.tolist()})

    @cached_property
    def stages(self) -> list[int]:
        """The stages that the instructions name, in their order."""
        stages = np.unique(self.boxes.table.rows.stage)
        return [stage for stage in stages.tolist() if stage >= 0]

    @cached_property
    def phases(self) -> tuple[Phase, ...]:
        """Fill, steady state and drain, by the first and the last forward of each rank.

        Without times there are none.
        """
        forward = IS_FORWARD[self.boxes.table.rows.op]
        of_rank = self.boxes.table.rank[forward]
        if not len(of_rank) or self.unit == "steps":
            return ()
        start, end = self.boxes.start[forward], self.boxes.end[forward]
        _, place = np.unique(of_rank, return_inverse=True)
        first, last = (np.full(place.max() + 1, value) for value in (np.inf, -np.inf))
        np.minimum.at(first, place, start)
        np.maximum.at(last, place, end)
        filled, drains = float(first.max()), float(last.min())
        middle = "steady state" if filled <= drains else "fill and drain"
        bounds = (0.0, *sorted((filled, drains)), self.length)
        names = ("fill", middle, "drain")
        found = (Phase(*p) for p in zip(names, bounds[:-1], bounds[1:], strict=True))
        return tuple(phase for phase in found if phase.end > phase.start)

    def in_steps(self, first: int, stop: int) -> "Panel":
        """The part of the panel that stands in the steps from `first` up to, but not, `stop`.

        Times stay what they are, the time axis ends with the last box, and what was added up over
        the whole plan is left out.
        """
        step = self.boxes.table.rows.step
        kept = (step >= first) & (step < stop)
        row = np.cumsum(kept) - 1
        arrows, boxes = self.arrows, self.boxes
        whole = kept[arrows.send] & kept[arrows.receive]
        ends = boxes.end[kept]
        return replace(
            self,
            note=f"{self.note}; steps {first} to {stop - 1}",
            length=float(ends.max(initial=0.0)),
            boxes=Boxes(rows_of(boxes.table, kept), boxes.start[kept], ends, boxes.run[kept]),
            arrows=Arrows(row[arrows.send[whole]], row[arrows.receive[whole]], arrows.end[whole]),
            breakdown=None,
        )


def rows_of(table: PlanTable, chosen: Ints | Bools) -> PlanTable:
    """Some rows of a table, in an order of the caller's."""
    return replace(table, rows=table.rows[chosen], program=table.program[chosen])


def arrange(
    table: PlanTable, start: Seconds, end: Seconds, run: Ints, arrows: Arrows
) -> tuple[Boxes, Arrows]:
    """Boxes rank after rank, each rank's by their starts, and arrows between them."""
    order = np.lexsort((np.arange(len(start)), start, table.rank))
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    boxes = Boxes(rows_of(table, order), start[order], end[order], run[order])
    return boxes, Arrows(place[arrows.send], place[arrows.receive], arrows.end)


def matched(table: PlanTable, arrival: Seconds) -> Arrows:
    """The transfers of a table: the k-th send of a channel goes with its k-th receive.

    Args:
        table: The instructions.
        arrival: `[rows]`: when what a row receives is there.
    """
    send, receive, _ = table.matched
    return Arrows(send, receive, arrival[receive])


def placed_marks(
    marks: Iterable[tuple[str, Severity, int | None, int | None]], boxes: Boxes
) -> tuple[Mark, ...]:
    """Marks where the instructions of a step of a rank are drawn.

    Args:
        marks: Text, severity, rank and step of each; without a step, it is of the whole rank, and
            without a rank, of all of them.
        boxes: The instructions.
    """
    return tuple(_placed(*mark, boxes) for mark in marks)


def _placed(
    text: str, severity: Severity, rank: int | None, step: int | None, boxes: Boxes
) -> Mark:
    if rank is None and step is None:
        return Mark(text, severity)
    own = np.ones(len(boxes.start), dtype=bool)
    if rank is not None:
        own &= boxes.table.rank == rank
    if step is not None:
        own &= boxes.table.rows.step == step
    if not own.any():
        return Mark(text, severity)
    start, end = float(boxes.start[own].min()), float(boxes.end[own].max())
    return Mark(text, severity, rank, start, end)
