"""`schedcc postmortem`: what is left of a run names the rank that ended it."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.testing import DeadlockError
from schedcc import compile_pipeline
from schedcc.recordings.files import read_recording
from schedcc.recordings.postmortem import postmortem
from schedcc.testing.plans import pipeline
from schedcc.testing.strategies import at_corners, sizes
from schemas import PipelinePlan
from schemas.reports.postmortem import Postmortem, RankState
from tests.support.recorded_stops import stop_at
from tests.support.recordings import (
    BROKEN,
    CLOSE,
    SECOND,
    SYMPTOM,
    lines_of_run,
    run_recorded,
    until,
    write,
    write_all,
)

RING = pipeline("L0 F0 R1:1 S0", "R0 F0 S1:0", micro_batches=2)
"""Either stage receives before it sends."""


def examine(directory: Path) -> Postmortem:
    found = postmortem(read_recording(directory))
    assert Postmortem.model_validate_json(found.model_dump_json()) == found
    return found


def offset_of(plan: PipelinePlan, stage: int, text: str) -> int:
    placed = plan.stage(stage).program.placed()
    return next(p.offset for p in placed if str(p.instruction) == text)


def test_a_healthy_recording_has_no_cause_and_shows_what_every_rank_did(tmp_path, run):
    plan = compile_pipeline(4, 3)
    found = examine(write_all(tmp_path / "r", plan, runs=2))
    assert found.cause is None
    assert [status.state for status in found.ranks] == [RankState.CLOSED] * 3
    for status in found.ranks:
        assert status.activity.runs == 2
        assert status.activity.forward_seconds == 2 * 4 * 1.0
    shown = run("postmortem", tmp_path / "r")
    assert shown.status == 0
    assert "every rank ended in order" in shown.out
    assert shown.out.count("│ 8.000 s │") == 3


def test_the_rank_that_raised_is_the_cause_with_its_traceback(tmp_path, run):
    plan = compile_pipeline(4, 3)
    offset = offset_of(plan, 1, "ForwardPass(micro_batch=2)")
    late = {**SYMPTOM, "at": 900 * SECOND}
    ends = {0: [late, CLOSE], 1: [{**BROKEN, "at": 100 * SECOND}, CLOSE], 2: [late]}
    stop_at(tmp_path / "r", plan, 1, offset, ends)
    found = examine(tmp_path / "r")
    assert found.cause is not None
    assert (found.cause.kind, found.cause.ranks) == ("error", (1,))
    where = "run 0, step 3: ForwardPass(micro_batch=2)"
    assert found.cause.message == f"rank 1 (stage 1) raised ValueError: broken in {where}"
    shown = run("postmortem", tmp_path / "r")
    assert shown.status == 1
    assert shown.out.startswith(f"cause (error): {found.cause.message}\n")
    assert "Traceback ...\nValueError: broken\n" in shown.out
    assert "TransportError: peer lost" in shown.out
    needed = "rank 1, step 4: SendActivation(micro_batch=2)"
    assert f"rank 2, step 4: RecvActivation(micro_batch=2)  waits for  {needed}" in shown.out


def test_the_same_error_everywhere_is_told_of_all_who_raised_it(tmp_path):
    for stage in range(2):
        write(tmp_path, stage, 2, [{**BROKEN, "at": 5 - stage}, CLOSE])
    found = examine(tmp_path)
    assert found.cause is not None
    assert found.cause.ranks == (0, 1)
    assert found.cause.message == "rank 0 and rank 1 raised ValueError: broken outside of a run"


def test_the_first_of_several_errors_is_the_cause(tmp_path):
    for stage in range(3):
        error = {**BROKEN, "message": f"by {stage}", "at": 9 - stage, "symptom": stage == 2}
        write(tmp_path, stage, 3, [error])
    found = examine(tmp_path)
    assert found.cause is not None
    assert found.cause.ranks == (1,)


def test_a_rank_whose_file_just_ends_has_vanished(tmp_path):
    plan = compile_pipeline(4, 3)
    offset = offset_of(plan, 1, "ForwardPass(micro_batch=2)")
    stop_at(tmp_path, plan, 1, offset, {0: [SYMPTOM, CLOSE], 2: [SYMPTOM, CLOSE]})
    found = examine(tmp_path)
    assert found.cause is not None
    assert (found.cause.kind, found.cause.ranks) == ("vanished", (1,))
    where = "in run 0, step 3: ForwardPass(micro_batch=2)"
    assert found.cause.message == f"rank 1 (stage 1) vanished {where}"


def test_a_rank_that_was_ended_while_it_waited_is_not_blamed(tmp_path):
    plan = compile_pipeline(4, 3)
    offset = offset_of(plan, 1, "ForwardPass(micro_batch=2)")
    stop_at(tmp_path, plan, 1, offset, {0: [SYMPTOM, CLOSE]})  # stage 2 just ends, too
    found = examine(tmp_path)
    assert found.cause is not None
    assert (found.cause.kind, found.cause.ranks) == ("vanished", (1,))
    assert found.ranks[2].state is RankState.VANISHED


def test_a_hang_that_all_were_killed_in_is_blamed_on_who_did_not_come_out(tmp_path):
    plan = compile_pipeline(4, 3, overlap=True)
    offset = offset_of(plan, 0, "ForwardPass(micro_batch=3)")
    stop_at(tmp_path, plan, 0, offset, {})
    found = examine(tmp_path)
    assert found.cause is not None
    assert (found.cause.kind, found.cause.ranks) == ("stuck", (0,))
    where = "run 0, step 3: ForwardPass(micro_batch=3)"
    assert found.cause.message == f"rank 0 (stage 0) did not come out of {where}"
    first = found.waits[0]
    assert str(first.waiter) == "rank 1, step 4: WaitRecvActivation(micro_batch=3)"
    assert str(first.needed) == "rank 0, step 3: PostSendActivation(micro_batch=3)"
    assert first.why == "data"
    since = found.ranks[0].since
    assert since == pytest.approx(max(r.since for r in found.ranks))


@given(size=sizes(5, 4), overlap=st.booleans(), draw=st.data())
@at_corners(overlap=True, draw=None)
@settings(max_examples=40)
def test_whichever_instruction_never_ends_its_rank_is_the_cause(
    tmp_path_factory, size, overlap, draw
):
    plan = compile_pipeline(*size, overlap=overlap)
    stage = draw.draw(st.integers(0, plan.stages - 1)) if draw else plan.stages - 1
    own = [p for p in plan.stage(stage).program.placed() if "Post" not in p.instruction.op]
    victim = draw.draw(st.sampled_from(own)) if draw else own[len(own) // 2]
    directory = tmp_path_factory.mktemp("recording")
    stop_at(directory, plan, stage, victim.offset, {})
    found = examine(directory)
    assert found.cause is not None
    assert found.cause.ranks == (stage,)
    assert str(victim.instruction) in found.cause.message
    assert all(wait.waiter.rank != stage for wait in found.waits)


def test_ranks_that_wait_for_each_other_are_shown_as_a_deadlock(tmp_path, run):
    with pytest.raises(DeadlockError):
        run_recorded(RING, tmp_path / "r")
    found = examine(tmp_path / "r")
    assert found.cause is not None
    assert (found.cause.kind, found.cause.ranks) == ("deadlock", (0, 1))
    shown = run("postmortem", tmp_path / "r").out
    assert shown.startswith("cause (deadlock): rank 0 and rank 1 wait for each other\n")
    zero, one = "rank 0, step 0: RecvActivation", "rank 1, step 0: RecvActivation"
    assert f"{zero}(micro_batch=1)  waits for  rank 1, step 0: SendActivation(micro_b" in shown
    assert f"{one}(micro_batch=0)  waits for  rank 0, step 0: SendActivation(micro_b" in shown


def test_a_deadlock_by_the_order_of_one_queue_is_found_as_well(tmp_path):
    plan = pipeline("L0 F0 r<1:1 s>0 s.0 r.1:1", "R0 F0 S0:0", micro_batches=2)
    with pytest.raises(DeadlockError):
        run_recorded(plan, tmp_path)
    found = examine(tmp_path)
    assert found.cause is not None
    assert (found.cause.kind, found.cause.ranks) == ("deadlock", (0, 1))


def test_an_error_in_a_run_over_a_transport_is_told_from_what_the_others_suffer(tmp_path):
    with pytest.raises(ArithmeticError):
        run_recorded(compile_pipeline(3, 3), tmp_path, fails=1)
    found = examine(tmp_path)
    assert found.cause is not None
    assert (found.cause.kind, found.cause.ranks) == ("error", (1,))
    assert "ForwardPass(micro_batch=1)" in found.cause.message
    assert "ArithmeticError: no second forward" in (found.cause.traceback or "")
    assert [status.error and status.error.symptom for status in found.ranks] == [True, False, True]


def test_only_errors_that_others_caused_are_told_as_such(tmp_path):
    plan = compile_pipeline(2, 2)
    for stage in range(2):  # both are inside the first transfer, and both lose it
        word = "SendActivation(micro_batch=0)" if stage == 0 else "RecvActivation(micro_batch=0)"
        offset = offset_of(plan, stage, word)
        error = {**SYMPTOM, "at": (50 + stage) * SECOND}
        write(tmp_path, stage, 2, [*until(lines_of_run(plan, stage), offset, offset - 1), error])
    found = examine(tmp_path)
    assert found.waits == ()
    assert found.cause is not None
    assert found.cause.message.startswith("rank 0 and rank 1 raised TransportError: peer lost in")


def test_a_transfer_whose_transport_stands_still_is_said_to_have_both_ends(tmp_path):
    plan = compile_pipeline(2, 2)
    for stage, word in enumerate(["SendActivation", "RecvActivation"]):
        offset = offset_of(plan, stage, f"{word}(micro_batch=0)")
        write(tmp_path, stage, 2, until(lines_of_run(plan, stage), offset, offset - 1))
    found = examine(tmp_path)
    assert found.cause is not None
    assert (found.cause.kind, found.cause.ranks) == ("stuck", (0, 1))
    assert found.cause.message.count("though the other end of the transfer had begun") == 2


def test_a_peer_without_a_recording_is_named(tmp_path):
    plan = compile_pipeline(2, 2)
    offset = offset_of(plan, 0, "SendActivation(micro_batch=0)")
    write(tmp_path, 0, 2, until(lines_of_run(plan, 0), offset, offset - 1))
    found = examine(tmp_path)
    assert found.damages == ("no recording of stage 1",)
    assert found.cause is not None
    assert found.cause.ranks == (0,)


def test_ranks_between_their_runs_are_said_to_be_there(tmp_path):
    plan = compile_pipeline(2, 2)
    write(tmp_path, 0, 2, lines_of_run(plan, 0))
    write(tmp_path, 1, 2, [])
    found = examine(tmp_path)
    assert found.cause is not None
    assert found.cause.kind == "unknown"
    assert found.cause.message == (
        "no rank was inside an instruction: rank 0 (stage 0) and rank 1 (stage 1) stopped "
        "after its last line of run 0; before its first run"
    )


def test_a_rank_that_never_began_the_run_is_what_the_others_wait_for(tmp_path):
    plan = compile_pipeline(2, 2)
    offset = offset_of(plan, 0, "SendActivation(micro_batch=0)")
    again = until(lines_of_run(plan, 0, run=1), offset, offset - 1)
    write(tmp_path, 0, 2, [*lines_of_run(plan, 0), *again])
    write(tmp_path, 1, 2, lines_of_run(plan, 1))
    found = examine(tmp_path)
    assert found.cause is not None
    assert found.cause.ranks == (1,)
    (wait,) = found.waits
    assert str(wait.waiter) == "rank 0, step 1: SendActivation(micro_batch=0)"
    assert str(wait.needed) == "rank 1, run 1, which it has not begun"
    assert found.cause.message == "rank 1 (stage 1) stopped after its last line of run 0"


def test_after_an_error_that_was_survived_the_recording_is_healthy(tmp_path):
    plan = compile_pipeline(2, 1)
    whole = lines_of_run(plan, 0, run=1)
    write(tmp_path, 0, 1, [*until(lines_of_run(plan, 0), 1, 0), BROKEN, *whole, CLOSE])
    found = examine(tmp_path)
    assert found.cause is None
    assert found.ranks[0].activity.runs == 2


def test_replicas_are_told_apart(tmp_path):
    plan = compile_pipeline(3, 2)
    for stage in range(2):
        write(tmp_path, stage, 2, [*lines_of_run(plan, stage), CLOSE])
        offset = offset_of(plan, stage, "ForwardPass(micro_batch=1)")
        lines = until(lines_of_run(plan, stage), offset, offset - 1)
        waiting = until(lines, 1, 0) if stage == 1 else lines
        write(tmp_path, stage, 2, waiting, rank=2 + stage, replica=1)
    found = examine(tmp_path)
    assert found.cause is not None
    assert set(found.cause.ranks) <= {2, 3}
    assert [status.state.value for status in found.ranks] == ["closed"] * 2 + ["vanished"] * 2


def test_the_json_is_the_model(tmp_path, run):
    write_all(tmp_path / "r", compile_pipeline(2, 2))
    shown = run("postmortem", tmp_path / "r", "--json")
    assert json.loads(shown.out)["format"] == "schedcc.postmortem/1"
    assert Postmortem.model_validate_json(shown.out).cause is None


def test_a_directory_without_a_recording_is_one_sentence(tmp_path, run):
    shown = run("postmortem", tmp_path)
    assert (shown.status, shown.out) == (2, "")
    assert shown.err == f"schedcc: {tmp_path} holds no recording (rank_*.jsonl)\n"
    assert run("postmortem", tmp_path / "no").err == f"schedcc: {tmp_path / 'no'} is no directory\n"
