"""Panels of plans: predicted times where the plan is sound, else its steps."""

from dataclasses import replace

import numpy as np

from schedcc.io.plain_text import visible
from schedcc.pictures.panel import Panel, Severity, arrange, matched, placed_marks
from schedcc.simulation.simulate import Prediction, prediction
from schedcc.table.codes import NONE
from schedcc.table.rows import Rows, same_as_before
from schedcc.table.table import PlanTable
from schedcc.verify import check
from schemas import (
    Costs,
    Finding,
    PipelinePlan,
    PlanHeader,
    Report,
    StagePlan,
    Timeline,
    TransportModel,
)


def plan_panel(
    plan: PipelinePlan | StagePlan,
    costs: Costs | None = None,
    transport: TransportModel | None = None,
    *,
    title: str | None = None,
) -> Panel:
    """A plan with what the checks find in it.

    A sound plan of all ranks is drawn over the time that `schedcc.simulate` predicts. One with
    errors has no such time, and one rank alone has none either: these are drawn over their steps.

    Args:
        plan: A plan from anywhere.
        costs: Seconds of everything; default: one second a forward, nothing else.
        transport: What transfers wait for; default: the strictest model.
        title: Default: the schedule and its sizes.

    Raises:
        ValueError: there are costs for another number of stages.
    """
    report = check(plan, transport)
    heading = title or _title(plan)
    if isinstance(plan, PipelinePlan) and report.ok:
        predicted = prediction(plan, costs, transport)
        return _with_findings(prediction_panel(predicted, heading), report, plan)
    programs = (plan.program,) if isinstance(plan, StagePlan) else plan.programs
    why = f"one {plan.unit} alone" if report.ok else "the plan has errors"
    panel = _steps_panel(PlanTable.of(plan, programs), heading, why, plan)
    return _with_findings(panel, report, plan)


def prediction_panel(predicted: Prediction, title: str) -> Panel:
    """A prediction."""
    table, (start, end) = predicted.table, predicted.spans.T
    run = np.zeros(len(start), dtype=np.int64)
    boxes, arrows = arrange(table, start, end, run, matched(table, end))
    return Panel(
        title=title,
        note=f"predicted: {predicted.makespan:.6g} s, bubble {predicted.bubble:.1%}",
        unit="seconds",
        length=predicted.makespan,
        unit_of_rank=table.header.unit,
        boxes=boxes,
        arrows=arrows,
        breakdown=predicted.breakdown,
    )


def timeline_panel(timeline: Timeline, title: str = "simulation") -> Panel:
    """A timeline as `schedcc.simulate` returns it."""
    spans = [
        pair for s in timeline.stages for pair in zip(s.spans.starts, s.spans.ends, strict=True)
    ]
    times = np.array(spans, dtype=np.float64).reshape(-1, 2)
    busy = tuple(stage.busy for stage in timeline.stages)
    held = (0,) * len(busy)
    table = _table_of(timeline)
    predicted = Prediction(timeline.costs, table, times, timeline.makespan, busy, held)
    return prediction_panel(predicted, title)


def _table_of(timeline: Timeline) -> PlanTable:
    """The instructions of a timeline; where its stages are, they say themselves."""
    parts = [
        (stage.rank, Rows.of([[span.instruction] for span in stage.spans]), ())
        for stage in timeline.stages
    ]
    holds = {s: rank for rank, rows, _ in parts for s in np.unique(rows.stage).tolist() if s >= 0}
    stages = max(holds, default=0) + 1
    header = PlanHeader.model_construct(
        format="",
        micro_batches=0,
        stages=stages,
        ranks=len(parts),
        placement=tuple(holds.get(stage, NONE) for stage in range(stages)),
        num_buffers=0,
    )
    table = PlanTable.joined(header, parts)
    steps = [NONE if span.step is None else span.step for s in timeline.stages for span in s.spans]
    return replace(table, rows=replace(table.rows, step=np.array(steps, dtype=np.int64)))


def _steps_panel(table: PlanTable, title: str, why: str, plan: PlanHeader) -> Panel:
    """The instructions of a step side by side, which says nothing about time."""
    step = table.rows.step
    steps = int(step.max(initial=NONE)) + 1
    column = np.where(step == NONE, steps, step)
    place = np.arange(len(column))
    opens = np.flatnonzero(~same_as_before(place, table.program, column))
    count = np.diff(np.append(opens, len(column)))
    within = place - np.repeat(opens, count)
    start = column + within / np.repeat(count, count)
    end = column + (within + 1) / np.repeat(count, count)
    run = np.zeros(len(start), dtype=np.int64)
    boxes, arrows = arrange(table, start, end, run, matched(table, end))
    note = f"{why}: no times, one column for each step"
    return Panel(title, note, "steps", float(end.max(initial=0.0)), plan.unit, boxes, arrows)


def _with_findings(panel: Panel, report: Report, plan: PlanHeader) -> Panel:
    found = (
        (visible(finding, lines=True), _severity(finding), _rank(finding, plan), finding.step)
        for finding in report.findings
    )
    return replace(panel, marks=placed_marks(found, panel.boxes))


def _severity(finding: Finding) -> Severity:
    return finding.severity


def _rank(finding: Finding, plan: PlanHeader) -> int | None:
    if finding.rank is not None or finding.stage_id is None:
        return finding.rank
    return plan.rank_of(finding.stage_id)


def _title(plan: PlanHeader) -> str:
    ranks = "" if plan.is_one_to_one else f" on R = {plan.ranks} ranks"
    alone = f", rank {plan.rank} alone" if isinstance(plan, StagePlan) else ""
    return f"{visible(plan.schedule)}: M = {plan.micro_batches}, S = {plan.stages}{ranks}{alone}"
