"""`check_deadlock` on programs that get stuck, written by hand, with the circle it must show."""

from textwrap import dedent
from time import perf_counter

import pytest

from schedcc.checks.collectives import collectives_hold
from schedcc.table.table import PlanTable
from schedcc.testing.plans import pipeline, program
from schemas import BroadcastLoss, Finding, MoveLogits, PipelinePlan
from tests.support.plans import deadlocks


def circle(plan: PipelinePlan) -> str:
    """The message of the only finding."""
    (finding,) = deadlocks(plan)
    assert finding == Finding(code="deadlock", message=finding.message)
    return finding.message


def text(message: str) -> str:
    return dedent(message).strip()


def test_two_stages_that_both_send_first_wait_for_each_other():
    plan = pipeline("S0:1 | R1:1", "S1:0 | R0:0", micro_batches=2)
    assert circle(plan) == text("""
    stages 0 and 1 wait for each other:
      stage 1, step 0: SendActivation(micro_batch=1)  waits for  stage 0, step 1: RecvActivation(micro_batch=1)  (rendezvous)
      stage 0, step 0: SendActivation(micro_batch=0)  waits for  stage 1, step 1: RecvActivation(micro_batch=0)  (rendezvous)
    """)  # noqa: E501 (as it is printed)


def test_two_stages_that_both_receive_first_wait_for_each_other():
    plan = pipeline("R1:1 | S0:1", "R0:0 | S1:0", micro_batches=2)
    assert circle(plan) == text("""
    stages 0 and 1 wait for each other:
      stage 1, step 0: RecvActivation(micro_batch=0)  waits for  stage 0, step 1: SendActivation(micro_batch=0)  (data)
      stage 0, step 0: RecvActivation(micro_batch=1)  waits for  stage 1, step 1: SendActivation(micro_batch=1)  (data)
    """)  # noqa: E501 (as it is printed)


def test_two_channels_served_in_opposite_orders_block_each_other():
    plan = pipeline("S0:1 | S1:2", "R2:2 | R0:0", "R1:0 | S2:1", micro_batches=3)
    assert circle(plan) == text("""
    stages 0, 1 and 2 wait for each other in a circle:
      stage 2, step 0: RecvActivation(micro_batch=1)  waits for  stage 0, step 1: SendActivation(micro_batch=1)  (data)
      stage 0, step 0: SendActivation(micro_batch=0)  waits for  stage 1, step 1: RecvActivation(micro_batch=0)  (rendezvous)
      stage 1, step 0: RecvActivation(micro_batch=2)  waits for  stage 2, step 1: SendActivation(micro_batch=2)  (data)
    """)  # noqa: E501 (as it is printed)


def test_a_ring_in_which_everybody_sends_first_is_stuck():
    plan = pipeline("S0:1 R2:2", "S1:2 R0:0", "S2:0 R1:1", micro_batches=3)
    assert circle(plan) == text("""
    stages 0, 1 and 2 wait for each other in a circle:
      stage 2, step 0: SendActivation(micro_batch=2)  waits for  stage 0, step 0: RecvActivation(micro_batch=2)  (rendezvous)
      stage 0, step 0: SendActivation(micro_batch=0)  waits for  stage 1, step 0: RecvActivation(micro_batch=0)  (rendezvous)
      stage 1, step 0: SendActivation(micro_batch=1)  waits for  stage 2, step 0: RecvActivation(micro_batch=1)  (rendezvous)
    """)  # noqa: E501 (as it is printed)


def test_a_ring_in_which_one_stage_receives_first_is_not_stuck():
    plan = pipeline("S0:1 R2:2", "R0:0 S1:2", "S2:0 R1:1", micro_batches=3)
    assert (deadlocks(plan)) == []


def test_a_stage_that_sends_to_itself_waits_for_itself():
    assert circle(pipeline("S0:0 | R0:0")) == text("""
    stage 0 waits for itself:
      stage 0, step 0: SendActivation(micro_batch=0)  waits for  stage 0, step 1: RecvActivation(micro_batch=0)  (rendezvous)
    """)  # noqa: E501 (as it is printed)


def test_a_stage_that_waits_for_its_own_send_waits_for_itself():
    assert circle(pipeline("s>0:0 | s.0:0 | R0:0")).startswith("stage 0 waits for itself:\n")


def test_posting_both_ends_does_not_help_where_one_queue_serves_them_in_order():
    message = circle(pipeline("s>0:0 r<0:0 | s.0:0 r.0:0"))
    assert message.startswith("stage 0 waits for itself:\n")
    assert message.endswith("(queue)")


def test_a_posted_receive_blocks_the_sends_behind_it():
    plan = pipeline("r<1:1 | S0:1 | r.1:1", "R0:0 | S1:0", micro_batches=2)
    assert circle(plan) == text("""
    stages 0 and 1 wait for each other:
      stage 1, step 0: RecvActivation(micro_batch=0)      waits for  stage 0, step 0: PostRecvActivation(micro_batch=1)  (queue)
      stage 0, step 0: PostRecvActivation(micro_batch=1)  waits for  stage 1, step 1: SendActivation(micro_batch=1)      (data)
    """)  # noqa: E501 (as it is printed)


def test_a_receive_posted_behind_the_send_blocks_nothing():
    plan = pipeline("s>0:1 | r<1:1 | r.1:1 s.0:1", "R0:0 | S1:0", micro_batches=2)
    assert (deadlocks(plan)) == []


def test_two_stages_that_post_their_sends_first_are_still_stuck():
    plan = pipeline("s>0:1 | R1:1 | s.0:1", "s>1:0 | R0:0 | s.1:0", micro_batches=2)
    assert circle(plan).startswith("stages 0 and 1 wait for each other:\n")


def test_each_knot_is_a_finding_of_its_own():
    knot = ("S0:{1} | R1:{1}", "S1:{0} | R0:{0}")
    texts = [side.format(first, first + 1) for first in (0, 2) for side in knot]
    headlines = [
        finding.message.partition("\n")[0]
        for finding in deadlocks(pipeline(*texts, micro_batches=2))
    ]
    assert sorted(headlines) == [
        "stages 0 and 1 wait for each other:",
        "stages 2 and 3 wait for each other:",
    ]


def test_four_stages_are_all_named():
    ring = [f"S{s}:{(s + 1) % 4} R{(s - 1) % 4}:{(s - 1) % 4}" for s in range(4)]
    message = circle(pipeline(*ring, micro_batches=4))
    assert message.startswith("stages 0, 1, 2 and 3 wait for each other in a circle:\n")
    assert message.count("(rendezvous)") == 4


def test_a_transfer_without_a_counterpart_is_another_checks_business():
    assert (deadlocks(pipeline("S0", ""))) == []
    assert (deadlocks(pipeline("S0:7", "R0:9"))) == []


def test_collectives_entered_in_opposite_orders_are_another_checks_business():
    one, two = BroadcastLoss(source=0), BroadcastLoss(source=1)
    programs = (program(0, "", [one, two]), program(1, "", [two, one]))
    assert (deadlocks(PipelinePlan(micro_batches=1, stages=2, programs=programs))) == []


def test_collectives_of_other_stages_entered_in_opposite_orders_wait_for_each_other():
    everywhere, ends = BroadcastLoss(source=2), MoveLogits(source=2, destination=0)
    epilogues = [[everywhere, ends], [everywhere], [ends, everywhere]]
    programs = tuple(program(stage, "", epilogue) for stage, epilogue in enumerate(epilogues))
    plan = PipelinePlan(micro_batches=1, stages=3, programs=programs)
    assert "stages 0 and 2 wait for each other" in circle(plan).splitlines()[0]
    table = PlanTable.of(plan, plan.programs)
    assert not collectives_hold(table)
    in_order = plan.model_copy(update={"programs": (*programs[:2], program(2, "", epilogues[0]))})
    assert deadlocks(in_order) == []
    assert collectives_hold(PlanTable.of(in_order, in_order.programs))


@pytest.mark.parametrize("stages", [2, 3, 8])
def test_a_long_circle_is_explained_in_a_few_lines_and_soon(stages):
    rounds = range(600 // stages)
    ring = [
        " ".join(f"S{m}:{(s + 1) % stages} R{m}:{(s - 1) % stages}" for m in rounds)
        for s in range(stages)
    ]
    began = perf_counter()
    findings = deadlocks(pipeline(*ring, micro_batches=len(rounds)))
    assert perf_counter() - began < 10
    assert findings
    assert all(len(finding.message.splitlines()) <= stages + 1 for finding in findings)
