"""`latency`: plans that are free of deadlock and still serialise."""

import pytest
from hypothesis import given, settings

from schedcc import Costs, check, compile_pipeline, simulate
from schedcc.testing.plans import pipeline
from schedcc.testing.strategies import at_corners, sizes
from schedcc.verify import verdict
from schemas import (
    PipelinePlan,
    PostRecvActivation,
    PostSendActivation,
    RecvActivation,
    SendActivation,
    Step,
    StepInstruction,
    TransportModel,
    WaitRecvActivation,
    WaitSendActivation,
)
from tests.support.plans import sends_first


@at_corners()
@settings(max_examples=30, deadline=None)
@given(size=sizes(8, 6))
def test_the_compilers_plans_are_as_fast_as_their_steps_allow(size):
    for overlap in (False, True):
        assert not verdict(compile_pipeline(*size, overlap=overlap), None, "networkx").findings


def test_a_pipeline_in_which_every_stage_sends_first_serialises():
    (finding,) = check(sends_first(6, 5)).findings
    assert (finding.code, finding.severity) == ("latency", "warning")
    headline, *chain = finding.message.splitlines()
    assert headline == (
        "the critical path is 34 long with a barrier after each step (24 without), a forward or a "
        "transfer 1 each; needed at most 30 = 3 x 10 steps; the longest chain in it of transfers "
        "that wait for one another:"
    )
    step = finding.step
    assert len(chain) == 4  # one for each channel
    assert chain[0] == f"  stage 3, step {step}: SendActivation(micro_batch=0)"
    assert all(f"step {step}: " in line and "Activation(" in line for line in chain)


@pytest.mark.parametrize("backend", ["networkx", "arrays"])
def test_a_split_plan_is_measured_with_barriers_where_the_model_has_them(backend):
    plan = split(sends_first(6, 5))
    assert not verdict(plan, TransportModel(), backend).findings
    (finding,) = verdict(plan, TransportModel(step_barrier=True), backend).findings
    assert finding.message.startswith(
        "the critical path is 34 long with a barrier after each step (24 without), "
    )
    unit = simulate(plan, Costs(forward=1.0, transfer=1.0))
    assert unit.makespan == 24


def split(plan: PipelinePlan) -> PipelinePlan:
    """The same plan with each transfer as a post and its wait, one after the other."""
    programs = [
        program.model_copy(update={"steps": tuple(map(_split, program.steps))})
        for program in plan.programs
    ]
    return plan.model_copy(update={"programs": tuple(programs)})


def _split(step: Step) -> Step:
    return tuple(part for instruction in step for part in _parts(instruction))


def _parts(i: StepInstruction) -> tuple[StepInstruction, ...]:
    match i:
        case SendActivation():
            kinds = PostSendActivation, WaitSendActivation
        case RecvActivation():
            kinds = PostRecvActivation, WaitRecvActivation
        case _:
            return (i,)
    return tuple(kind(**i.model_dump(exclude={"op"})) for kind in kinds)


@pytest.mark.parametrize("backend", ["networkx", "arrays"])
def test_a_serialised_plan_is_sound_all_the_same(backend):
    report = verdict(sends_first(6, 5), None, backend)
    assert report.ok
    assert len(report.findings) == 1


def test_three_stages_that_send_first_are_no_slower_than_their_steps_allow():
    assert not check(sends_first(6, 3)).findings


def test_a_plan_that_pipelines_nothing_is_too_slow():
    stages, micro_batches = 3, 9
    texts = [
        " | ".join(" | " * 3 * m + f"L{m} F{m} | S{m}" for m in range(micro_batches)),
        " | ".join(" | " * (3 * m + 1) + f"R{m} F{m} | S{m}" for m in range(micro_batches)),
        " | ".join(" | " * (3 * m + 2) + f"L{m} R{m} F{m}" for m in range(micro_batches)),
    ]
    plan = pipeline(*texts, micro_batches=micro_batches)
    assert len(plan.programs) == stages
    assert check(plan).ok


def test_a_long_chain_is_cut_short_in_the_message():
    (finding,) = check(sends_first(12, 14)).findings
    assert finding.message.splitlines()[-1] == "  ... and 4 more"


def test_a_plan_without_steps_has_no_latency():
    assert "latency" not in {f.code for f in check(pipeline("", "")).findings}
