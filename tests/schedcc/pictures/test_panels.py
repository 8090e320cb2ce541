"""What pictures show is what was simulated, recorded or found."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedcc import Costs, check, compile_pipeline, simulate
from schedcc.pictures.content import content
from schedcc.pictures.page import page
from schedcc.pictures.panel import Phase
from schedcc.pictures.planned import plan_panel, timeline_panel
from schedcc.testing.plans import pipeline
from schedcc.testing.strategies import at_corners, sizes
from schemas import BufferInstruction, Timeline
from tests.support.pictures import Page, rows_of
from tests.support.plans import sends_first

COSTS = Costs(forward=1.0, transfer=0.25, load=0.125)


def rows_of_timeline(timeline: Timeline) -> list[list[tuple]]:
    def row(span) -> tuple:
        own = isinstance(span.instruction, BufferInstruction)
        ids = (span.instruction.stage, span.instruction.micro_batch) if own else (-1, -1)
        return (span.instruction.op, *ids, span.start, span.end)

    return [[row(span) for span in stage.spans] for stage in timeline.stages]


@given(size=sizes(5, 4), overlap=st.booleans())
@at_corners(overlap=True)
@settings(max_examples=20)
def test_the_data_in_the_page_is_the_timeline(size, overlap):
    plan = compile_pipeline(*size, overlap=overlap)
    timeline = simulate(plan, COSTS)
    data = Page(page("a page", [plan_panel(plan, COSTS), timeline_panel(timeline)])).data
    assert rows_of(data) == rows_of(data, 1) == rows_of_timeline(timeline)
    assert [shown["length"] for shown in data["panels"]] == [timeline.makespan] * 2


@pytest.mark.parametrize("schedule", ["inference", "interleaved", "v_shape"])
@pytest.mark.parametrize("overlap", [False, True])
def test_an_arrow_leads_from_each_send_to_its_receive(schedule, overlap):
    each = 1 if schedule == "inference" else 2
    plan = compile_pipeline(5, 3 * each, schedule=schedule, ranks=3, overlap=overlap)
    (shown,) = content("", [plan_panel(plan, COSTS)])["panels"]
    columns, arrows = shown["columns"], shown["arrows"]
    turns = sum(a == b for a, b in zip(plan.placement, plan.placement[1:], strict=False))
    assert len(arrows["send"]) == 5 * (plan.stages - 1 - turns)
    for send, receive, end in zip(*(arrows[n] for n in ("send", "receive", "end")), strict=True):
        assert columns["micro_batch"][send] == columns["micro_batch"][receive]
        assert columns["stage"][send] + 1 == columns["stage"][receive]
        assert columns["start"][send] + 0.25 <= end == columns["end"][receive]


def test_every_rank_is_named_and_holds_its_own_instructions():
    plan = compile_pipeline(3, 4, schedule="interleaved", ranks=2)
    (shown,) = content("", [plan_panel(plan)])["panels"]
    assert [(rank["name"], rank["stages"]) for rank in shown["ranks"]] == [
        ("rank 0", [0, 2]),
        ("rank 1", [1, 3]),
    ]
    (alone,) = content("", [plan_panel(compile_pipeline(3, 4).stage(2))])["panels"]
    assert [rank["name"] for rank in alone["ranks"]] == ["stage 2"]
    assert (alone["unit"], alone["note"]) == (
        "steps",
        "one stage alone: no times, one column for each step",
    )


def test_fill_steady_state_and_drain_are_told_by_the_forwards():
    assert plan_panel(compile_pipeline(4, 3)).phases == (
        Phase("fill", 0, 2),
        Phase("steady state", 2, 4),
        Phase("drain", 4, 6),
    )
    assert plan_panel(compile_pipeline(2, 4)).phases == (
        Phase("fill", 0, 2),
        Phase("fill and drain", 2, 3),
        Phase("drain", 3, 5),
    )
    assert plan_panel(compile_pipeline(3, 1)).phases == (Phase("steady state", 0, 3),)


def test_a_plan_with_errors_is_drawn_by_its_steps_with_its_findings():
    plan = pipeline("L0 F0|L1 S0 F1|S1", "|R1 L0 F0|R0 L1 F1", micro_batches=2)
    drawn = plan_panel(plan)
    assert (drawn.unit, drawn.breakdown, drawn.phases) == ("steps", None, ())
    (shown,) = content("", [drawn])["panels"]
    assert shown["columns"]["start"][:2] == [0, 0.5]
    places = {(mark["rank"], mark["start"]) for mark in shown["marks"]}
    assert places == {(1, 1.0), (1, 2.0)}
    (swapped,) = [m for m in shown["marks"] if "transfer 1 sends micro-batch 0" in m["text"]]
    assert (swapped["severity"], swapped["end"]) == ("error", swapped["start"] + 1)


def test_warnings_of_a_sound_plan_stand_at_their_times():
    plan = sends_first(6, 5)
    drawn = plan_panel(plan)
    (mark,) = drawn.marks
    (finding,) = check(plan).findings
    assert (drawn.unit, mark.severity, mark.text) == ("seconds", "warning", str(finding))
    spans = [
        (span.start, span.end)
        for stage in simulate(plan).stages
        for span in stage.spans
        if span.step == finding.step
    ]
    assert (mark.rank, finding.stage_id) == (None, None)  # it is of all ranks
    assert (mark.start, mark.end) == (min(spans)[0], max(end for _, end in spans))


def test_a_part_of_the_steps_keeps_its_times_and_arrows():
    whole = plan_panel(compile_pipeline(6, 3, overlap=True), COSTS)
    part = whole.in_steps(2, 4)
    steps = part.boxes.table.rows.step
    assert (int(steps.min()), int(steps.max())) == (2, 3)
    kept = whole.boxes.table.rows.step
    assert part.boxes.start.tolist() == whole.boxes.start[(kept >= 2) & (kept < 4)].tolist()
    rows = part.boxes.table.rows
    assert len(part.arrows.send) > 0
    assert (
        rows.micro_batch[part.arrows.send].tolist()
        == rows.micro_batch[part.arrows.receive].tolist()
    )


def test_a_plan_without_micro_batches_is_drawn():
    drawn = plan_panel(pipeline("", ""))
    assert content("", [drawn])["panels"][0]["columns"]["op"] == []
