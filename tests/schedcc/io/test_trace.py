"""`schedcc trace`: recordings and simulations for a timeline viewer."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedcc import Costs, compile_pipeline, simulate
from schedcc.recordings.files import read_recording
from schedcc.testing.strategies import at_corners, sizes
from schedcc.trace import recorded_trace, simulated_trace
from schemas import PipelinePlan
from tests.support.recordings import BROKEN, COSTS, lines_of_run, until, write, write_all


def slices(trace: dict[str, Any], phase: str = "X") -> list[dict[str, Any]]:
    return [event for event in trace["traceEvents"] if event["ph"] == phase]


def counted(plan: PipelinePlan, op: str) -> int:
    placed = [p for program in plan.programs for p in program.placed()]
    return sum(p.instruction.op == op for p in placed)


@given(size=sizes(5, 4), overlap=st.booleans())
@at_corners(overlap=True)
@settings(max_examples=20)
def test_slices_of_a_stage_do_not_overlap_and_transfers_have_two_ends(size, overlap):
    plan = compile_pipeline(*size, overlap=overlap)
    trace = simulated_trace(simulate(plan, Costs(forward=1.0, transfer=0.5)))
    for stage in range(plan.stages):
        own = sorted((e["ts"], e["ts"] + e["dur"]) for e in slices(trace) if e["tid"] == stage)
        assert all(end <= start for (_, end), (start, _) in pairwise(own))
    begun, ended = (Counter(e["id"] for e in slices(trace, phase)) for phase in "be")
    assert begun == ended
    posts = counted(plan, "PostSendActivation") + counted(plan, "PostRecvActivation")
    assert len(begun) == posts
    assert set(begun.values()) <= {1}
    forwards = [e for e in slices(trace) if e["cat"] == "forward"]
    assert len(forwards) == plan.micro_batches * plan.stages


@pytest.mark.parametrize("overlap", [False, True])
def test_a_recorded_run_shows_every_instruction_at_its_time(tmp_path, overlap):
    plan = compile_pipeline(3, 2, overlap=overlap)
    trace = recorded_trace(read_recording(write_all(tmp_path, plan)))
    json.dumps(trace)
    shown = slices(trace)
    assert len(shown) == sum(len(list(program.placed())) for program in plan.programs)
    spans = simulate(plan, COSTS).stages[1].spans
    number, span = next((n, s) for n, s in enumerate(spans) if s.instruction.op == "ForwardPass")
    event = [e for e in shown if e["tid"] == 1][number]
    assert event["name"] == "ForwardPass 0"
    assert event["ts"] == pytest.approx(span.start * 1e6)
    assert event["dur"] == pytest.approx(1e6)
    assert event["args"] == {"stage": 1, "micro_batch": 0, "buffer": 0, "run": 0, "step": span.step}
    assert len(slices(trace, "b")) == counted(plan, "WaitSendActivation") + counted(
        plan, "WaitRecvActivation"
    )
    names = [e["args"]["name"] for e in slices(trace, "M") if e["name"] == "thread_name"]
    assert names == ["rank 0 (stage 0)", "rank 1 (stage 1)"]


def test_what_never_ended_is_open_and_errors_are_marked(tmp_path):
    lines = until(lines_of_run(compile_pipeline(2, 1), 0), 1, 0)
    write(tmp_path, 0, 1, [*lines, BROKEN])
    trace = recorded_trace(read_recording(tmp_path))
    assert [e["name"] for e in slices(trace, "B")] == ["ForwardPass 0"]
    assert [e["name"] for e in slices(trace, "i")] == ["ValueError: broken"]


def test_the_command_writes_recordings_and_simulations(tmp_path, run):
    plan = compile_pipeline(3, 2)
    file, out = tmp_path / "plan.json", tmp_path / "trace.json"
    file.write_text(plan.model_dump_json())
    write_all(tmp_path / "r", plan)

    def traced(*arguments: object) -> dict[str, Any]:
        shown = run("trace", *arguments, "-o", out)
        assert shown.status == 0, shown.err
        trace = json.loads(out.read_text())
        assert shown.out == f"{out}: {len(trace['traceEvents'])} events\n"
        return trace

    assert traced(tmp_path / "r") == recorded_trace(read_recording(tmp_path / "r"))
    costs = ("--forward", "1,2", "--transfer", "0.5")
    simulated = simulated_trace(simulate(plan, Costs(forward=(1, 2), transfer=0.5)))
    assert traced(file, *costs) == traced("-M", 3, "-S", 2, *costs) == simulated


def test_bad_input_is_one_sentence(tmp_path, run):
    stage = tmp_path / "stage.json"
    stage.write_text(compile_pipeline(3, 2).stage(1).model_dump_json())
    nowhere = Path("no", "such", "directory.json")
    for arguments, message in (
        ((tmp_path,), "holds no recording"),
        ((stage,), "the plan of stage 1 alone, needed all stages"),
        ((), "needed a plan file, or the numbers of micro-batches and stages"),
        (("-M", 2, "-S", 2, "-o", nowhere), f"{nowhere}: cannot be written"),
    ):
        shown = run("trace", *arguments)
        assert (shown.status, shown.out, shown.err.count("\n")) == (2, "", 1)
        assert message in shown.err


def arrows_of(trace: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Both ends of each flow, which have the same id, category and name."""
    ends: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for event in trace["traceEvents"]:
        if event["ph"] in "sf":
            ends.setdefault((event["id"], event["cat"], event["name"]), []).append(event)
    assert all([e["ph"] for e in pair] == ["s", "f"] for pair in ends.values())
    return [(first, second) for first, second in ends.values()]


def slice_at(trace: dict[str, Any], event: dict[str, Any]) -> dict[str, Any]:
    """The slice that a flow belongs to: the one of its lane that is open at its time."""
    lane = (event["pid"], event["tid"])
    (found,) = [
        e
        for e in slices(trace)
        if (e["pid"], e["tid"]) == lane and e["ts"] <= event["ts"] < e["ts"] + e["dur"]
    ]
    return found


SENDS = {"SendActivation", "PostSendActivation"}
RECEIVES = {"RecvActivation", "WaitRecvActivation"}


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("transfer", [0.0, 0.25, 3.0])
@pytest.mark.parametrize(("schedule", "stages"), [("inference", 3), ("interleaved", 6)])
def test_arrows_lead_from_the_slice_of_a_send_to_that_of_its_receive(
    schedule, stages, transfer, overlap
):
    plan = compile_pipeline(4, stages, schedule=schedule, ranks=3, overlap=overlap)
    trace = simulated_trace(simulate(plan, Costs(transfer=transfer)))
    arrows = arrows_of(trace)
    assert len(arrows) == 4 * (stages - 1)
    for leaves, arrives in arrows:
        assert leaves["ts"] <= arrives["ts"]
        first, second = slice_at(trace, leaves), slice_at(trace, arrives)
        assert first["args"]["micro_batch"] == second["args"]["micro_batch"]
        assert first["args"]["stage"] + 1 == second["args"]["stage"]
        # What takes no time has no slice: then the forwards are at the ends.
        assert first["name"].split()[0] in SENDS | {"ForwardPass"}
        assert second["name"].split()[0] in RECEIVES | {"ForwardPass"}


@pytest.mark.parametrize("overlap", [False, True])
def test_recorded_arrows_match_within_their_run(tmp_path, overlap):
    plan = compile_pipeline(3, 3, overlap=overlap)
    trace = recorded_trace(read_recording(write_all(tmp_path, plan, runs=2)))
    arrows = arrows_of(trace)
    assert len(arrows) == 2 * 3 * 2
    assert all(isinstance(leaves["id"], int) for leaves, _ in arrows)
    for leaves, arrives in arrows:
        assert leaves["ts"] <= arrives["ts"]
        assert (leaves["tid"] + 1, arrives["bp"]) == (arrives["tid"], "e")


def test_arrows_of_a_run_that_broke_off_end_where_it_did(tmp_path):
    plan = compile_pipeline(3, 2)
    write(tmp_path, 0, 2, lines_of_run(plan, 0))
    write(tmp_path, 1, 2, until(lines_of_run(plan, 1), 3, 2))
    assert len(arrows_of(recorded_trace(read_recording(tmp_path)))) == 1
