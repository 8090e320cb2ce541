"""Runs whose data ended before the plan: what was skipped is not missed."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedcc import compile_pipeline
from schedcc.recordings import conform, postmortem, read_recording
from schedcc.recordings.files import RecordingFileError
from schedcc.testing.strategies import at_corners, sizes
from schedcc.trace import recorded_trace
from schemas import PipelinePlan
from tests.support.plans import restricted
from tests.support.recordings import CLOSE, Line, lines_of_run, write

PLAN = compile_pipeline(6, 3)


def shortened(plan: PipelinePlan, stage: int, count: int, known: int = 0) -> list[Line]:
    """The lines of a run over `count` micro-batches, of which the rank knew after some lines."""
    whole, part = lines_of_run(plan, stage), lines_of_run(restricted(plan, count), stage)
    offsets = {
        (str(line["step"]), str(line["instruction"])): line["offset"]
        for line in whole
        if line["event"] == "start"
    }
    lines = [*whole[:2]]
    for line in part[2:]:
        if line["event"] == "start":
            offset = offsets[str(line["step"]), str(line["instruction"])]
        if line["event"] in ("start", "end"):
            line = {**line, "offset": offset}
        lines.append(line)
    told = {"event": "data_end", "micro_batches": count}
    known = min(2 + known, len(lines) - 1)
    end = {**lines[-1], "micro_batches": count}
    return [*lines[:known], {**told, "at": lines[known - 1]["at"]}, *lines[known:-1], end]


def write_shortened(directory: Path, plan: PipelinePlan, count: int) -> Path:
    for stage in range(plan.stages):
        lines = shortened(plan, stage, count, known=2 * stage)
        write(directory, stage, plan.stages, [*lines, CLOSE])
    return directory


@at_corners(count=0, overlap=True)
@settings(max_examples=30, deadline=None)
@given(size=sizes(6, 4), count=st.integers(0, 6), overlap=st.booleans())
def test_a_run_that_ended_with_its_data_followed_the_plan(tmp_path_factory, size, count, overlap):
    plan = compile_pipeline(*size, overlap=overlap)
    recording = read_recording(write_shortened(tmp_path_factory.mktemp("r"), plan, count))
    assert recording.damages == ()
    found = conform(plan, recording)
    assert found.ok, found.deviations
    left = restricted(plan, count)
    assert found.instructions == sum(1 for program in left.programs for _ in program.placed())
    short = count < plan.micro_batches
    text = f"replica 0, run 0: the data ended after {count} of the plan's {size[0]} micro-batches"
    assert found.notes == ((text,) if short else ())
    examined = postmortem(recording)
    assert examined.cause is None
    assert {status.micro_batches for status in examined.ranks} == {count}


def test_without_the_word_that_the_data_ended_the_rest_is_missed(tmp_path):
    for stage in range(3):
        lines = [line for line in shortened(PLAN, stage, 4) if line["event"] != "data_end"]
        lines[-1].pop("micro_batches")
        write(tmp_path, stage, 3, [*lines, CLOSE])
    found = conform(PLAN, read_recording(tmp_path))
    assert {deviation.code for deviation in found.deviations} == {"sequence"}
    assert len(found.deviations) == 3


def test_the_end_of_the_run_alone_says_it_too(tmp_path):
    for stage in range(3):
        lines = [line for line in shortened(PLAN, stage, 4) if line["event"] != "data_end"]
        write(tmp_path, stage, 3, [*lines, CLOSE])
    assert conform(PLAN, read_recording(tmp_path)).ok


def test_an_instruction_of_a_micro_batch_that_is_not_there_may_be_entered_before_one_knows(
    tmp_path,
):
    plan = compile_pipeline(4, 1)
    whole = lines_of_run(plan, 0)
    beyond = next(
        n
        for n, line in enumerate(whole)
        if line["event"] == "start" and line["instruction"].get("micro_batch") == 2
    )
    told = {"event": "data_end", "at": whole[beyond]["at"], "micro_batches": 2}
    epilogue = [line for line in whole if line.get("offset") == 8]
    load, end = whole[beyond : beyond + 2]
    write(tmp_path, 0, 1, [*whole[:beyond], load, told, end, *epilogue, whole[-1], CLOSE])
    found = conform(plan, read_recording(tmp_path))
    assert found.ok, found.deviations
    write(tmp_path, 0, 1, [*whole[:beyond], told, load, end, *epilogue, whole[-1], CLOSE])
    (deviation,) = conform(plan, read_recording(tmp_path)).deviations
    assert deviation.message == (
        "executed LoadMicroBatch(stage=0, micro_batch=2, buffer=0) (step 2), "
        "though it knew that the data "
        "ends after 2 micro-batches"
    )


def stopped(lines: list[Line], step: int | None, op: str) -> list[Line]:
    """The lines up to the start of an instruction, which never ends."""
    stop = next(
        n
        for n, line in enumerate(lines)
        if line["event"] == "start" and (line["step"], line["instruction"]["op"]) == (step, op)
    )
    return lines[: stop + 1]


def test_a_run_that_breaks_off_after_its_data_ended_is_judged_by_what_was_left_of_it(tmp_path):
    """Stage 0 alone knows: what stage 1 waits for then is not a micro-batch that there is not."""
    lines = [shortened(PLAN, stage, 2) for stage in range(3)]
    write(tmp_path, 0, 3, stopped(lines[0], None, "BroadcastLoss"))
    untold = [[line for line in own if line["event"] != "data_end"] for own in lines]
    write(tmp_path, 1, 3, stopped(untold[1], None, "BroadcastLoss"))
    write(tmp_path, 2, 3, stopped(untold[2], 3, "ForwardPass"))
    recording = read_recording(tmp_path)
    found = postmortem(recording)
    assert [status.micro_batches for status in found.ranks] == [2, 2, 2]
    assert found.cause is not None
    assert (found.cause.kind, found.cause.ranks) == ("stuck", (2,))
    assert "step 3: ForwardPass(micro_batch=1)" in found.cause.message
    assert [wait.waiter.rank for wait in found.waits] == [0, 1]
    assert {wait.why for wait in found.waits} == {"collective"}
    assert conform(PLAN, recording).ok


def test_a_rank_that_waits_for_what_the_data_does_not_hold_is_said_to(tmp_path):
    lines = [shortened(PLAN, stage, 2) for stage in range(3)]
    write(tmp_path, 0, 3, [*lines[0], CLOSE])
    write(tmp_path, 2, 3, [*lines[2], CLOSE])
    whole = lines_of_run(PLAN, 1)
    write(tmp_path, 1, 3, stopped(whole, 3, "RecvActivation"))
    found = postmortem(read_recording(tmp_path))
    assert found.cause is not None
    assert found.cause.ranks == (1,)
    assert found.cause.kind == "vanished"
    write(tmp_path, 0, 3, lines[0])
    found = postmortem(read_recording(tmp_path))
    assert found.cause is not None
    assert found.cause.message == (
        "rank 1 (stage 1) did not come out of run 0, step 3: RecvActivation(micro_batch=2), though "
        "the data ended after 2 micro-batches"
    )


def test_ranks_that_do_not_agree_on_the_end_of_the_data_are_a_deviation(tmp_path):
    for stage, count in enumerate([4, 4, 3]):
        write(tmp_path, stage, 3, [*shortened(PLAN, stage, count), CLOSE])
    messages = [d.message for d in conform(PLAN, read_recording(tmp_path)).deviations]
    assert (
        "the ranks of replica 0 do not agree on how many micro-batches there were: 4 (rank 0 "
        "(stage 0)) and 3 (rank 2 (stage 2))"
    ) in messages


@pytest.mark.parametrize("count", [-1, "two", None])
def test_an_end_of_data_that_makes_no_sense_is_damage(tmp_path, count):
    write(tmp_path, 0, 1, [{"event": "data_end", "micro_batches": count}])
    (damage,) = read_recording(tmp_path).damages
    assert "line 2: no event: " in damage


def test_ends_of_data_that_contradict_each_other_are_damage(tmp_path):
    ends: list[dict[str, Any]] = [{"event": "data_end", "micro_batches": n} for n in (3, 2)]
    lines = lines_of_run(compile_pipeline(4, 1), 0)[:2]
    write(tmp_path, 0, 1, [ends[0], *lines, *ends])
    first, second = read_recording(tmp_path).damages
    assert "line 2: the data ends outside of a run" in first
    assert "line 6: the data ends after 2 micro-batches, and after 3 before" in second


def test_a_trace_shows_where_the_data_ended(tmp_path):
    trace = recorded_trace(read_recording(write_shortened(tmp_path, PLAN, 4)))
    marks = [event for event in trace["traceEvents"] if event["ph"] == "i"]
    assert [(m["name"], m["pid"], m["tid"]) for m in marks] == [
        ("data ends after 4", 0, stage) for stage in range(3)
    ]


def test_restricting_does_not_make_other_errors_good(tmp_path):
    with pytest.raises(RecordingFileError):
        read_recording(tmp_path)
    lines = shortened(PLAN, 0, 4)
    start = next(n for n, line in enumerate(lines) if line.get("offset") == 3)
    write(tmp_path, 0, 3, [*lines[:start], *lines[start + 2 :], CLOSE])
    for stage in (1, 2):
        write(tmp_path, stage, 3, [*shortened(PLAN, stage, 4), CLOSE])
    deviations = conform(PLAN, read_recording(tmp_path)).deviations
    assert [(d.code, d.rank) for d in deviations] == [("sequence", 0)]
