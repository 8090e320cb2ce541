"""`schedcc conform`: a recording follows its plan, and no other."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.testing import DeadlockError
from schedcc import compile_pipeline
from schedcc.recordings.conform import conform
from schedcc.recordings.files import read_recording
from schedcc.testing.plans import pipeline
from schedcc.testing.strategies import at_corners, sizes
from schemas import PipelinePlan
from schemas.reports.conformance import Conformance
from tests.schedcc.recordings.test_postmortem import RING
from tests.support.models_for_tests import batches, over_stages
from tests.support.recordings import (
    CLOSE,
    SECOND,
    Line,
    lines_of_run,
    run_recorded,
    until,
    write,
    write_all,
)

PLAN = compile_pipeline(4, 3)


def compare(plan: PipelinePlan, directory: Path, **options: Any) -> Conformance:
    found = conform(plan, read_recording(directory), **options)
    assert Conformance.model_validate_json(found.model_dump_json()) == found
    return found


def messages(found: Conformance) -> list[str]:
    return list(map(str, found.deviations))


@given(size=sizes(6, 4), overlap=st.booleans(), runs=st.integers(1, 2))
@at_corners(overlap=True, runs=1)
@settings(max_examples=30)
def test_what_a_simulation_says_follows_the_plan(tmp_path_factory, size, overlap, runs):
    plan = compile_pipeline(*size, overlap=overlap)
    found = compare(plan, write_all(tmp_path_factory.mktemp("r"), plan, runs))
    assert found.ok, messages(found)
    assert found.runs == tuple(range(runs))
    executed = sum(len(list(program.placed())) for program in plan.programs)
    assert found.instructions == runs * executed
    assert found.notes == ()


@pytest.mark.parametrize("overlap", [False, True])
def test_a_run_in_memory_follows_its_plan_and_no_other(tmp_path, overlap):
    plan = compile_pipeline(4, 3, overlap=overlap)
    bare = plan.model_copy(
        update={"programs": tuple(p.model_copy(update={"epilogue": ()}) for p in plan.programs)}
    )
    run_recorded(bare, tmp_path / "r")
    assert compare(bare, tmp_path / "r").ok
    found = compare(plan, tmp_path / "r")  # the same with an epilogue
    assert not found.ok
    assert messages(found)[0] == (
        "sequence: rank 0, run 0: the run ended without BroadcastLoss(source=2) (epilogue)"
    )
    other = compile_pipeline(4, 3, overlap=not overlap)
    assert not compare(other, tmp_path / "r").ok


def spoilt(directory: Path, stage: int, change: Any) -> Path:
    for here in range(PLAN.stages):
        lines = lines_of_run(PLAN, here)
        write(directory, here, PLAN.stages, [*(change(lines) if here == stage else lines), CLOSE])
    return directory


def at(lines: list[Line], event: str, offset: int) -> int:
    return next(
        n for n, line in enumerate(lines) if (line["event"], line.get("offset")) == (event, offset)
    )


def exchanged(lines: list[Line]) -> list[Line]:
    a, b = at(lines, "start", 2), at(lines, "start", 3)
    lines[a]["instruction"], lines[b]["instruction"] = (
        lines[b]["instruction"],
        lines[a]["instruction"],
    )
    return lines


def test_an_exchanged_pair_of_instructions_is_shown_with_what_the_plan_has(tmp_path, run):
    directory = spoilt(tmp_path / "r", 1, exchanged)
    file = tmp_path / "plan.json"
    file.write_text(PLAN.model_dump_json())
    shown = run("conform", file, directory)
    assert shown.status == 1
    assert shown.out == (
        "sequence: rank 1, run 0, step 2: executed "
        "SendActivation(stage=1, micro_batch=0, buffer=0, peer=2) "
        "(step 2), the plan has RecvActivation(stage=1, micro_batch=1, buffer=1, peer=0) (step 2)\n"
        f"{directory}: 1 deviation (1 run, 40 instructions)\n"
    )


@given(stage=st.integers(0, 2), offset=st.integers(0, 12), kind=st.sampled_from(["drop", "twice"]))
@settings(max_examples=25)
def test_an_instruction_dropped_or_repeated_is_a_deviation(tmp_path_factory, stage, offset, kind):
    def change(lines: list[Line]) -> list[Line]:
        a, b = at(lines, "start", offset), at(lines, "end", offset)
        pair = lines[a : b + 1] if kind == "twice" else []
        return [*lines[:a], *pair, *([*lines[a:]] if kind == "twice" else lines[b + 1 :])]

    found = compare(PLAN, spoilt(tmp_path_factory.mktemp("r"), stage, change))
    assert [(d.code, d.rank) for d in found.deviations] == [("sequence", stage)]


def test_a_receive_that_ended_before_its_send_began_is_out_of_order(tmp_path):
    def too_early(lines: list[Line]) -> list[Line]:
        a, b = at(lines, "start", 1), at(lines, "end", 1)  # the first receive
        lines[a]["at"] = lines[b]["at"] = 10
        return lines

    found = compare(PLAN, spoilt(tmp_path, 2, too_early))
    (deviation,) = found.deviations
    assert (deviation.code, deviation.rank, deviation.step) == ("order", 2, 2)
    assert deviation.message.startswith("the end of RecvActivation(micro_batch=0) is ")
    assert deviation.message.endswith(
        "before the start of SendActivation(micro_batch=0) on rank 1, which it depends on"
    )


def test_a_posted_receive_that_was_there_before_its_send_is_out_of_order(tmp_path):
    plan = compile_pipeline(3, 2, overlap=True)
    for stage in range(2):
        lines = lines_of_run(plan, stage)
        if stage == 1:
            for line in lines:
                line["at"] //= 1000  # everything on this stage happens in no time
        write(tmp_path, stage, 2, [*lines, CLOSE])
    found = compare(plan, tmp_path)
    assert found.deviations
    assert {d.code for d in found.deviations} == {"order"}
    assert "WaitRecvActivation(micro_batch=0)" in found.deviations[0].message
    assert "PostSendActivation(micro_batch=0)" in found.deviations[0].message


def test_clocks_of_different_machines_are_compared_with_the_error_they_may_have(tmp_path):
    for stage in range(2):
        behind = 1_700_000_000 * SECOND - stage * SECOND * 3 // 2  # 1.5 s, at the receiver
        lines = [*lines_of_run(compile_pipeline(3, 2), stage), CLOSE]
        write(tmp_path, stage, 2, lines, clock=f"machine {stage}", wall_ns=behind)
    plan = compile_pipeline(3, 2)
    tolerant = compare(plan, tmp_path, clock_error=2.0)
    assert tolerant.ok
    assert tolerant.notes == (
        "the ranks have different clocks: the order in time between them is compared to within 2 s",
    )
    assert {d.code for d in compare(plan, tmp_path).deviations} == {"order"}


def test_on_gpus_only_the_sequence_is_compared(tmp_path):
    plan = compile_pipeline(3, 2)
    for stage in range(2):
        lines = lines_of_run(plan, stage)
        for line in lines:
            line["at"] = 0 if stage else line["at"]
        write(tmp_path, stage, 2, [*lines, CLOSE], device=f"cuda:{stage}")
    found = compare(plan, tmp_path)
    assert found.ok
    assert found.notes == (
        "on cuda:0, cuda:1 instructions end when they have been enqueued: the order in time is "
        "not compared",
    )


def test_a_run_cut_short_is_said_to_be_a_prefix(tmp_path, run):
    for stage in range(3):
        lines = lines_of_run(PLAN, stage)
        write(tmp_path / "r", stage, 3, until(lines, 4, 3) if stage == 1 else [*lines, CLOSE])
    file = tmp_path / "plan.json"
    file.write_text(PLAN.model_dump_json())
    shown = run("conform", file, tmp_path / "r")
    assert shown.status == 0
    assert "note: rank 1 (stage 1), run 0: cut short; the 5 of 13 instructions" in shown.out
    assert shown.out.endswith("r: followed the plan (1 run, 32 instructions)\n")


def test_a_deadlocked_run_is_a_prefix_of_its_plan(tmp_path):
    with pytest.raises(DeadlockError):
        run_recorded(RING, tmp_path)
    found = compare(RING, tmp_path)
    assert found.ok
    assert len(found.notes) == 3
    assert found.notes[-1].startswith("the plan waits for itself")


def test_runs_of_another_number_of_micro_batches_are_told_and_can_be_left_out(tmp_path):
    for stage in range(2):
        lines = [
            *lines_of_run(compile_pipeline(3, 2), stage),
            *lines_of_run(compile_pipeline(2, 2), stage, run=1),
        ]
        write(tmp_path, stage, 2, [*lines, CLOSE])
    plan = compile_pipeline(3, 2)
    found = compare(plan, tmp_path)
    assert messages(found) == [
        f"sequence: rank {rank}, run 1: executed a plan for M = 2, the given one is for M = 3"
        for rank in range(2)
    ]
    assert compare(plan, tmp_path, run=0).ok
    with pytest.raises(ValueError, match=r"run is 2, needed a run of the recording \(0, 1\)"):
        compare(plan, tmp_path, run=2)


def test_the_plan_of_one_stage_is_compared_with_its_rank(tmp_path, run):
    write_all(tmp_path / "r", PLAN)
    file = tmp_path / "stage.json"
    file.write_text(PLAN.stage(1).model_dump_json())
    shown = run("conform", file, tmp_path / "r")
    assert (shown.status, shown.out) == (
        0,
        f"{tmp_path / 'r'}: followed the plan (1 run, 13 instructions)\n",
    )


@pytest.mark.parametrize(
    ("behind", "follows"), [("ForwardPass", True), ("WaitRecvActivation", False)]
)
def test_a_receive_may_be_posted_later_than_planned_but_not_after_its_wait(
    tmp_path, behind, follows
):
    plan = compile_pipeline(4, 3, overlap=True)
    for stage in range(3):
        lines = lines_of_run(plan, stage)
        if stage == 1:
            post = place_of(lines, "PostRecvActivation", 2)
            moved = [lines.pop(post), lines.pop(post)]
            after = place_of(lines, behind, 1 if follows else 2) + 2
            lines[after:after] = [{**line, "at": lines[after - 1]["at"]} for line in moved]
        write(tmp_path, stage, 3, [*lines, CLOSE])
    found = compare(plan, tmp_path)
    late = "rank 1 (stage 1), run 0: receives that were posted later than planned, when their"
    assert found.ok is follows
    assert [note for note in found.notes if note.startswith(late)] == (
        [f"{late} micro-batches were known: 1"] if follows else []
    )


def test_receives_that_change_places_get_the_messages_of_each_other(tmp_path):
    plan = compile_pipeline(4, 2, overlap=True)
    for stage in range(2):
        lines = lines_of_run(plan, stage)
        if stage == 1:
            first, second = (place_of(lines, "PostRecvActivation", m) for m in (0, 1))
            assert first < second < place_of(lines, "WaitRecvActivation", 0)
            moved = [lines.pop(first), lines.pop(first)]
            lines[second:second] = [{**line, "at": lines[second - 1]["at"]} for line in moved]
        write(tmp_path, stage, 2, [*lines, CLOSE])
    found = compare(plan, tmp_path)
    assert not found.ok
    assert messages(found)[0].startswith(
        "sequence: rank 1, run 0, step 0: executed PostRecvActivation(stage=1, micro_batch=1"
    )


def place_of(lines: list[Line], op: str, micro_batch: int) -> int:
    wanted = {"op": op, "micro_batch": micro_batch}
    return next(
        number
        for number, line in enumerate(lines)
        if line["event"] == "start" and wanted.items() <= line["instruction"].items()
    )


def test_an_evaluation_of_more_micro_batches_than_are_known_at_first_follows_its_plan(tmp_path):
    data = batches([1] * 70)
    over_stages(2, lambda evaluator: evaluator.evaluate(data), record=tmp_path)
    found = conform(None, read_recording(tmp_path))
    assert found.ok, messages(found)
    assert any("posted later than planned" in note for note in found.notes)


def test_without_a_plan_each_run_is_compared_with_the_one_that_the_recording_holds(tmp_path, run):
    longer = compile_pipeline(6, 3)
    for stage in range(3):
        runs = [*lines_of_run(PLAN, stage, 0), *lines_of_run(longer, stage, 1)]
        write(tmp_path, stage, 3, [*runs, CLOSE])
    assert [d.code for d in compare(PLAN, tmp_path).deviations] == ["sequence"] * 3
    shown = run("conform", tmp_path)
    executed = sum(len(list(p.placed())) for plan in (PLAN, longer) for p in plan.programs)
    said = f"{tmp_path}: followed the plan (2 runs, {executed} instructions)\n"
    assert shown == (0, said, "")


def test_without_a_plan_an_exchanged_pair_is_found_and_a_missing_plan_is_said(tmp_path, run):
    write_all(tmp_path, PLAN)
    file = tmp_path / "plan.json"
    file.write_text(PLAN.model_dump_json())
    directory = spoilt(tmp_path / "r", 1, exchanged)
    assert run("conform", directory) == run("conform", file, directory)
    bare = tmp_path / "bare"
    for stage in range(3):
        lines = [line for line in lines_of_run(PLAN, stage) if line["event"] != "plan"]
        write(bare, stage, 3, [*lines, CLOSE])
    assert "recording: run 0: no rank recorded the plan" in run("conform", bare).out


def test_a_recording_with_holes_or_of_other_stages_does_not_conform(tmp_path):
    write_all(tmp_path, PLAN)
    (tmp_path / "rank_00001.jsonl").unlink()
    found = compare(compile_pipeline(4, 4), tmp_path)
    assert messages(found)[:2] == [
        "recording: no recording of stage 1",
        "recording: recorded with S = 3 stages, the plan is for S = 4",
    ]


def test_a_recording_without_a_run_proves_nothing(tmp_path):
    for stage in range(3):
        write(tmp_path, stage, 3, [CLOSE])
    assert messages(compare(PLAN, tmp_path)) == [
        "recording: no rank began a run: nothing to compare"
    ]


def test_a_last_line_that_breaks_off_is_only_short(tmp_path):
    plan = pipeline("L0 F0")
    file = write(tmp_path, 0, 1, until(lines_of_run(plan, 0), 1, 1))
    file.write_bytes(file.read_bytes()[:-5])
    found = compare(plan, tmp_path)
    assert found.ok
    assert "the last line breaks off after" in found.notes[0]


def test_bad_input_is_one_sentence_and_exit_status_2(tmp_path, run):
    file = tmp_path / "plan.json"
    file.write_text(PLAN.model_dump_json())
    for arguments in ((tmp_path / "no.json", tmp_path), (file, tmp_path / "no")):
        shown = run("conform", *arguments)
        assert (shown.status, shown.out, shown.err.count("\n")) == (2, "", 1)


def test_the_json_is_the_model(tmp_path, run):
    file = tmp_path / "plan.json"
    file.write_text(PLAN.model_dump_json())
    shown = run("conform", file, write_all(tmp_path / "r", PLAN), "--json")
    assert json.loads(shown.out)["ok"] is True
    assert Conformance.model_validate_json(shown.out).ok
