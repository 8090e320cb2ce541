"""What is left of a plan when the data ends early is a sound plan."""

from hypothesis import given, settings
from hypothesis import strategies as st

from schedcc import Outcome, TransportModel, check, compile_pipeline
from schedcc.testing.strategies import at_corners, outcomes, sizes
from schemas import BufferInstruction
from tests.support.plans import restricted


@at_corners(overlap=True, fewer=0, outcome=Outcome(), queue="stage", buffered_sends=0)
@settings(max_examples=60)
@given(
    size=sizes(7, 5),
    overlap=st.booleans(),
    fewer=st.integers(0, 7),
    outcome=outcomes(),
    queue=st.sampled_from(["stage", "channel"]),
    buffered_sends=st.integers(0, 2),
)
def test_a_sound_plan_for_fewer_micro_batches_is_sound(
    size, overlap, fewer, outcome, queue, buffered_sends
):
    plan = compile_pipeline(*size, overlap=overlap, outcome=outcome)
    left = restricted(plan, fewer)
    transport = TransportModel(queue=queue, buffered_sends=buffered_sends)
    assert not check(left, transport).findings
    assert left.micro_batches == min(fewer, plan.micro_batches)
    for before, after in zip(plan.programs, left.programs, strict=True):
        assert after.epilogue == before.epilogue
        assert [p[1:] for p in after.placed()] == [
            p[1:]
            for p in before.placed()
            if not isinstance(p.instruction, BufferInstruction) or p.instruction.micro_batch < fewer
        ]
