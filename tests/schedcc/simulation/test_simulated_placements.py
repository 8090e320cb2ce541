"""Simulation where ranks hold several stages."""

import json

import pytest

from schedcc import SCHEDULES, Costs, compile_pipeline, simulate
from schedcc.simulation.compare import compare
from schedcc.simulation.compiled import compiled_table
from schedcc.table.table import PlanTable
from schemas import CopyActivation, ForwardPass, Timeline
from schemas.costs import SingleCost

V_SHAPE = compile_pipeline(4, 4, schedule="v_shape", ranks=2)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.name)
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("micro_batches", [1, 5, 64])
def test_the_table_of_a_schedule_is_that_of_its_plan(schedule, overlap, micro_batches):
    size = {"ranks": 3 if schedule.name == "inference" else 2, "schedule": schedule}
    stages = 3 if schedule.name == "inference" else 4
    table = compiled_table(micro_batches, stages, overlap=overlap, **size)
    plan = compile_pipeline(micro_batches, stages, overlap=overlap, **size)
    expected = PlanTable.of(plan, plan.programs)
    for column, other in zip(table.rows.columns, expected.rows.columns, strict=True):
        assert column.tolist() == other.tolist()
    assert table.epilogues == expected.epilogues
    assert table.rank_ids.tolist() == expected.rank_ids.tolist()
    assert (table.header.model_dump(), table.program.tolist()) == (
        expected.header.model_dump(),
        expected.program.tolist(),
    )


def spans_of(timeline: Timeline, op: type) -> list[tuple[int, int, float]]:
    return [
        (span.instruction.stage, span.instruction.micro_batch, span.end - span.start)
        for rank in timeline.stages
        for span in rank.spans
        if isinstance(span.instruction, op)
    ]


def test_a_forward_costs_what_its_stage_costs():
    late = SingleCost(of="forward", micro_batch=3, stage_id=2, seconds=0.5)
    timeline = simulate(V_SHAPE, Costs(forward=(1.0, 2.0, 4.0, 8.0), single=(late,)))
    for stage, micro_batch, seconds in spans_of(timeline, ForwardPass):
        assert seconds == (0.5 if (stage, micro_batch) == (2, 3) else 2.0**stage)
    assert [rank.busy for rank in timeline.stages] == [4 * 9.0, 4 * 2.0 + 3 * 4.0 + 0.5]
    assert [(rank.rank, rank.stage_id) for rank in timeline.stages] == [(0, None), (1, None)]


def test_a_copy_takes_no_time_whatever_its_boundary_would_cost():
    without = simulate(V_SHAPE, Costs(transfer=(0.25, 0.0, 0.5)))
    dear = simulate(V_SHAPE, Costs(transfer=(0.25, 100.0, 0.5)))
    assert dear.makespan == without.makespan
    assert {seconds for _, _, seconds in spans_of(dear, CopyActivation)} == {0.0}
    assert without.makespan > simulate(V_SHAPE).makespan


@pytest.mark.parametrize("forward", [1.0, (1.0, 2.0, 4.0, 8.0), (1.0, 20.0, 4.0, 8.0)])
def test_no_rank_is_done_before_what_it_holds_and_what_is_around_it(forward):
    timeline = simulate(V_SHAPE, Costs(forward=forward))
    a, b, c, d = forward if isinstance(forward, tuple) else (forward,) * 4
    assert timeline.ideal == max(4 * (a + d), a + 4 * (b + c) + d)
    assert timeline.makespan >= timeline.ideal


def test_interleaved_stages_are_idle_while_the_ring_fills_and_drains():
    timeline = simulate(compile_pipeline(4, 4, schedule="interleaved", ranks=2))
    assert timeline.makespan == timeline.ideal == 2 * 4 + 2 - 1
    assert timeline.bubble == timeline.ideal_bubble == pytest.approx(1 / 9)


def test_schedules_are_compared_on_their_ranks():
    found = compare(64, 8, schedule="interleaved", ranks=4)
    blocking, overlapped, training = found.schedules
    assert (found.ranks, found.schedule) == (4, "interleaved")
    assert blocking.steps == 2 * 64 + 4 - 1
    assert blocking.makespan == overlapped.makespan == blocking.steps
    assert blocking.ideal_bubble == pytest.approx(3 / 131)
    assert (training.steps, training.buffers) == (2 * (64 + 4 - 1), "4 down to 1")


def test_commands_take_a_schedule_and_ranks(run, tmp_path):
    chosen = ("-M", 4, "-S", 4, "--schedule", "v_shape", "--ranks", 2)
    shown = run("simulate", *chosen, "--forward", "1,2,4,8")
    assert shown.out.startswith("M = 4 micro-batches, S = 4 stages on R = 2 ranks: ")
    assert "│rank │" in shown.out
    file = tmp_path / "plan.json"
    file.write_text(V_SHAPE.model_dump_json())
    assert run("simulate", file, "--forward", "1,2,4,8") == shown
    as_json = json.loads(run("simulate", *chosen, "--json").out)
    assert as_json["makespan"] == simulate(V_SHAPE).makespan
    assert run("compare", *chosen).out.startswith("M = 4 micro-batches, S = 4 stages on R = 2")
    trace = tmp_path / "trace.json"
    assert run("trace", *chosen, "-o", trace).status == 0
    names = {event["name"] for event in json.loads(trace.read_text())["traceEvents"]}
    assert "ForwardPass 3, stage 2" in names
