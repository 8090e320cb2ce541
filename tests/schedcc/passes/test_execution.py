"""The checker's verdict against an execution of the plan: sound exactly when all goes well."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedcc import Outcome, compile_pipeline
from schedcc.testing.assertions import failure
from schedcc.testing.executor import FailedError, execute
from schedcc.testing.plans import pipeline
from schedcc.testing.strategies import at_corners, outcomes, sizes
from schemas import PipelinePlan, TransportModel
from tests.tools.mutant_walk import MODELS, STRICTEST, walk


@at_corners(overlap=True, outcome=Outcome(), model=MODELS[-1])
@at_corners(overlap=False, outcome=Outcome(), model=STRICTEST)
@settings(max_examples=60)
@given(size=sizes(8, 6), overlap=st.booleans(), outcome=outcomes(), model=st.sampled_from(MODELS))
def test_compiled_plans_execute_under_every_model(size, overlap, outcome, model):
    execute(compile_pipeline(*size, overlap=overlap, outcome=outcome), model)


@at_corners()
@given(size=sizes(8, 6))
def test_blocking_plans_execute_with_a_barrier_after_every_step(size):
    execute(compile_pipeline(*size), TransportModel(step_barrier=True))


GROUPED = "L0 F0 L1 F1 {{ s>{} s>{} }} s.0 s.1"


def grouped(first: int, second: int) -> PipelinePlan:
    return pipeline(
        GROUPED.format(first, second), "{ r<0 r<1 } r.0 r.1 L0 F0 L1 F1", micro_batches=2
    )


@pytest.mark.parametrize(
    ("kind", "expected", "plan"),
    [
        (
            "structure",
            "not one program for each rank",
            pipeline("L0 F0").model_copy(update={"stages": 2, "ranks": 2, "placement": (0, 1)}),
        ),
        ("channel", "stuck", pipeline("", "R0 L0 F0")),
        ("channel", "stuck", pipeline("L0 F0 S0:0")),
        ("buffer", "a value is lost", pipeline("L0 F0", "")),
        ("buffer", "None instead of x0", pipeline("F0")),
        (
            "buffer",
            "f0(x0) instead of f0(x1)",
            pipeline("L0 F0 S1@0", "", micro_batches=2),
        ),
        (
            "channel",
            "received f0(x0) as f0(x1)",
            pipeline("L0 F0 S0", "R1", micro_batches=2),
        ),
        (
            "structure",
            "received f1(f0(x0)) as x0",
            pipeline("L0 F0 S0 R0@1:1", "R0 L0 F0 S0:0"),
        ),
        ("buffer", "a value is lost", pipeline("L0 | L0 F0")),
        ("buffer", "a place in flight is read", pipeline("L0 F0 S0", "r<0 L0 F0 r.0")),
        ("channel", "nothing was posted", pipeline("L0 F0 S0", "r.0 L0 F0 r<0")),
        ("channel", "never waited for", pipeline("L0 F0 s>0", "R0 L0 F0")),
        ("coverage", "not all forwarded in order", pipeline("L1 F1 | L0 F0", micro_batches=2)),
        ("structure", "no such buffer", pipeline("L0@2 F0@2")),
        ("channel", "received f0(x1) as f0(x0)", grouped(1, 0)),
        ("structure", "not a part of a group", pipeline("{ L0 F0 }")),
        ("structure", "not a part of a group", pipeline("L0 F0 { s>0 | } s.0", "R0 L0 F0")),
        ("structure", "no group has begun", pipeline("L0 F0 }")),
        ("structure", "a group never ends", pipeline("L0 F0 { s>0", "R0 L0 F0")),
        ("deadlock", "stuck", pipeline("L0 F0 R0@1:1 S0", "R0 L0 F0 S0:0")),
    ],
)
def test_the_executor_sees_what_goes_wrong_and_of_what_kind_it_is(kind, expected, plan):
    failed = failure(plan, STRICTEST)
    assert (failed.kind, str(failed)) == (kind, expected)


def test_a_group_is_one_entry_of_the_queue():
    execute(grouped(0, 1))


def test_a_group_is_waited_for_as_a_whole():
    plan = pipeline("L0 F0 L1 F1 { s>0 s>1 } s.0 | s.1", "R0 L0 F0 | R1 L1 F1", micro_batches=2)
    execute(plan)
    with pytest.raises(FailedError, match="stuck"):
        execute(plan, TransportModel(step_barrier=True))


POSTED_IN_FRONT = pipeline("L0 F0 r<0@1:1 s>0 s.0 r.0@1:1", "R0 L0 F0 S0:0")
BOTH_SEND_FIRST = pipeline("L0 F0 S0 L1 F1 S1 R0@0:1", "R0 L0 F0 S0:0 R1 L1 F1", micro_batches=2)


@pytest.mark.parametrize(
    ("plan", "stuck_under"),
    [
        (POSTED_IN_FRONT, "stage 0, stage 1, stage 2"),
        (BOTH_SEND_FIRST, "stage 0, channel 0"),
    ],
)
def test_the_executor_gets_stuck_under_exactly_these_models(plan, stuck_under):
    kinds = {f"{m.queue} {m.buffered_sends}": failure(plan, m).kind for m in MODELS}
    assert ", ".join(model for model, kind in kinds.items() if kind == "deadlock") == stuck_under
    assert set(kinds.values()) == {"deadlock", "structure"}  # what arrives is no input of stage 0


def test_a_transfer_between_two_steps_is_stuck_at_the_barrier():
    plan = pipeline("L0 F0 S0 | ", " | R0 L0 F0")
    execute(plan)
    with pytest.raises(FailedError, match="stuck") as raised:
        execute(plan, TransportModel(step_barrier=True))
    assert raised.value.kind == "deadlock"


@pytest.mark.slow
def test_a_mutant_has_a_finding_of_the_right_kind_exactly_when_it_does_not_execute():
    """Under a transport model drawn for each; see `compare` for what is asserted of every one."""
    verdicts = walk(1000, seed=0)
    assert verdicts["sound"] > 80, verdicts  # no verdict is for free
    assert min(verdicts[kind] for kind in ("structure", "channel", "buffer")) > 30, verdicts
    assert verdicts["coverage"] > 0, verdicts
