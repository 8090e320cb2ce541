"""Recordings of ranks that hold several stages, and recordings of the first format."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedcc import compile_pipeline
from schedcc.io.plan_files import read_plan
from schedcc.io.plan_table import read_plan_table
from schedcc.recordings import conform, events, postmortem, read_recording
from schedcc.recordings.recording import PipelineId
from schedcc.trace import recorded_trace
from schemas import CopyActivation, PipelinePlan
from tests.support.paths import ROOT
from tests.support.recorded_lines import CLOSE, Line, lines_of_run, until, write, write_all
from tests.support.recorded_stops import stop_at

V_SHAPE = compile_pipeline(4, 4, schedule="v_shape", ranks=2)
LAPS = compile_pipeline(5, 6, schedule="interleaved", ranks=2, overlap=True)
FIRST_FORMAT = ROOT / "tests" / "data" / "plans" / "overlapped_m5_s4.plan1.json"


@pytest.mark.parametrize("plan", [V_SHAPE, LAPS], ids=["v_shape", "interleaved"])
def test_a_recording_of_several_stages_on_a_rank_follows_its_plan(tmp_path, run, plan):
    file = tmp_path / "plan.json"
    file.write_text(plan.model_dump_json())
    directory = write_all(tmp_path / "r", plan, runs=2)
    recording = read_recording(directory)
    assert recording.plan(PipelineId(0), 1) == plan
    for each in (plan, read_plan_table(file)):
        found = conform(each, recording)
        assert found.ok
        assert found.instructions == 2 * sum(len(list(p.placed())) for p in plan.programs)
    assert postmortem(recording).cause is None
    assert [status.stages for status in postmortem(recording).ranks] == [
        plan.stages_of(0),
        plan.stages_of(1),
    ]
    shown = run("postmortem", directory)
    assert shown.status == 0
    assert "│rank │ stages │" in shown.out.replace("  ", " ")
    assert f" {', '.join(map(str, plan.stages_of(0)))} " in shown.out


@settings(max_examples=25)
@given(plan=st.sampled_from([V_SHAPE, LAPS]), rank=st.integers(0, 1), draw=st.data())
def test_whichever_instruction_of_several_stages_never_ends_its_rank_is_the_cause(
    tmp_path_factory, plan, rank, draw
):
    own = [p for p in plan.rank(rank).program.placed() if "Post" not in p.instruction.op]
    victim = draw.draw(st.sampled_from(own))
    directory = tmp_path_factory.mktemp("recording")
    stop_at(directory, plan, rank, victim.offset, {})
    found = postmortem(read_recording(directory))
    assert found.cause is not None
    assert found.cause.ranks == (rank,)
    stages = ", ".join(map(str, plan.stages_of(rank)))
    assert f"rank {rank} (stages {stages}) " in found.cause.message.replace("-", ", ")
    assert str(victim.instruction) in found.cause.message
    assert all(wait.waiter.rank != rank for wait in found.waits)


def test_a_rank_that_does_not_come_out_of_a_copy_is_named_with_its_stages(tmp_path):
    copy = next(
        p for p in V_SHAPE.rank(1).program.placed() if isinstance(p.instruction, CopyActivation)
    )
    stop_at(tmp_path, V_SHAPE, 1, copy.offset, {})
    cause = postmortem(read_recording(tmp_path)).cause
    assert cause is not None
    assert cause.message == (
        "rank 1 (stages 1-2) did not come out of run 0, "
        f"step {copy.step}: CopyActivation(micro_batch={copy.instruction.micro_batch})"
    )


def first_receive(lines: list[Line], stage: int) -> int:
    """The line with which a stage begins its first receive."""
    return next(
        number
        for number, line in enumerate(lines)
        if line["event"] == "start"
        and (line["instruction"]["op"], line["instruction"].get("stage"))
        == ("RecvActivation", stage)
    )


def test_ranks_without_a_recording_are_named_as_ranks(tmp_path):
    plan = compile_pipeline(3, 6, schedule="interleaved", ranks=3)
    for rank, stage in ((0, 3), (1, 4)):
        lines = lines_of_run(plan, rank)
        write(tmp_path, rank, 3, lines[: first_receive(lines, stage) + 1])
    found = postmortem(read_recording(tmp_path))
    assert found.damages == ("no recording of rank 2",)
    assert found.cause is not None
    assert found.cause.message.endswith("rank 2 of its pipeline left no recording")


def test_a_rank_that_has_not_begun_is_named_by_who_waits_for_its_stage(tmp_path):
    lines = lines_of_run(V_SHAPE, 0)
    write(tmp_path, 0, 2, lines[: first_receive(lines, 3) + 1])
    write(tmp_path, 1, 2, [])
    found = postmortem(read_recording(tmp_path))
    (wait,) = found.waits
    assert (wait.waiter.rank, wait.needed.rank, wait.why) == (0, 1, "data")
    assert wait.needed.instruction is None
    assert [status.stages for status in found.ranks] == [(0, 3), (1, 2)]
    assert {wait.waiter.stage_id, wait.needed.stage_id} == {None}


def test_a_plan_with_its_stages_elsewhere_was_not_followed(tmp_path):
    write_all(tmp_path, V_SHAPE)
    other = compile_pipeline(4, 4, schedule="interleaved", ranks=2)
    found = conform(other, read_recording(tmp_path))
    assert str(found.deviations[0]) == (
        "sequence: rank 0, run 0: executed a plan with its stages on ranks 0, 1, 1, 0, "
        "in the given one 0, 1, 0, 1"
    )
    alone = conform(compile_pipeline(4, 4), read_recording(tmp_path))
    assert str(alone.deviations[0]) == (
        "recording: recorded with S = 2 stages, the plan is for S = 4"
    )


def test_a_message_that_is_received_by_another_stage_of_the_rank_is_a_deviation(tmp_path):
    write_all(tmp_path, LAPS)
    lines = lines_of_run(LAPS, 1)
    started = [line for line in lines if "peer" in line.get("instruction", {})]
    changed = started[len(started) // 2]
    changed["instruction"]["stage"] = (changed["instruction"]["stage"] + 2) % 6
    write(tmp_path, 1, 2, [*lines, CLOSE])
    (deviation,) = conform(LAPS, read_recording(tmp_path)).deviations
    assert (deviation.code, deviation.rank, deviation.step) == ("sequence", 1, changed["step"])


def test_slices_of_a_rank_with_several_stages_name_their_stage(tmp_path):
    trace = recorded_trace(read_recording(write_all(tmp_path, V_SHAPE)))["traceEvents"]
    names = [event["name"] for event in trace if event.get("cat") == "forward"]
    assert len(names) == 4 * 4
    assert {"ForwardPass 0, stage 0", "ForwardPass 3, stage 3"} <= set(names)
    assert {e["args"]["name"] for e in trace if e["name"] == "thread_name"} == {
        "rank 0 (stages 0, 3)",
        "rank 1 (stages 1-2)",
    }


def in_first_format(lines: list[Line], rank: int) -> list[Line]:
    """The lines as they were recorded when every rank had one stage, and did not name it."""
    programs = json.loads(FIRST_FORMAT.read_text())
    program = programs.pop("programs")[rank]
    plan = {**programs, **program, "format": "schedcc.stage-plan/1"}
    found: list[Line] = []
    for line in lines:
        changed: dict[str, Any] = dict(line)
        if line["event"] == "plan":
            changed["plan"] = plan
        if "stage" in line.get("instruction", {}):
            changed["instruction"] = {k: v for k, v in line["instruction"].items() if k != "stage"}
        found.append(changed)
    return found


@pytest.mark.parametrize("at_once", [True, False])
def test_a_recording_of_the_first_format_says_what_one_of_today_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    if not at_once:
        monkeypatch.setattr(events, "executed_pairs", lambda *_: None)
    plan = read_plan(FIRST_FORMAT)
    assert isinstance(plan, PipelinePlan)
    for rank in range(4):
        lines = lines_of_run(plan, rank)
        lines = until(lines, 11, 10) if rank == 2 else [*lines, CLOSE]
        write(tmp_path / "today", rank, 4, lines)
        write(tmp_path / "first", rank, 4, in_first_format(lines, rank))
    today, first = read_recording(tmp_path / "today"), read_recording(tmp_path / "first")
    assert first.damages == ()
    assert first.plan(PipelineId(0), 0) == plan
    assert postmortem(first) == postmortem(today)
    assert conform(plan, first) == conform(plan, today)
    assert conform(read_plan_table(FIRST_FORMAT), first).ok
    assert recorded_trace(first) == recorded_trace(today)


def test_an_instruction_of_today_has_to_name_its_stage(tmp_path):
    lines = lines_of_run(V_SHAPE, 0)
    del next(line for line in lines if line["event"] == "start")["instruction"]["stage"]
    write(tmp_path, 0, 2, [*lines, CLOSE])
    (damage, *_) = read_recording(tmp_path).damages
    assert damage.endswith("line 4: no event: start.instruction.stage is missing")
