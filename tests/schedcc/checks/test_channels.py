"""`check_channels`, `check_splits` and `check_collectives` on bad programs written by hand."""

import pytest

from schedcc.checks.channels import check_channels
from schedcc.checks.collectives import check_collectives
from schedcc.checks.splits import check_splits
from schedcc.testing.plans import pipeline, program
from schemas import BroadcastLoss, Finding, PipelinePlan, PlanHeader


def channel(message: str, stage_id: int, step: int | None = None) -> Finding:
    return Finding(code="channel", message=message, stage_id=stage_id, step=step)


def test_channels_that_match_have_no_findings():
    plan = pipeline("S0 s>1 | s.1", "r<0 | R1 r.0 S0 S1", "| R0 R1", micro_batches=2)
    assert list(check_channels(plan)) == []


def test_the_order_of_micro_batches_is_free_if_both_ends_agree():
    assert list(check_channels(pipeline("S1 S0", "R1 R0", micro_batches=2))) == []


def test_a_send_needs_a_receive():
    plan = pipeline("S0 | S1", "R0", micro_batches=2)
    message = (
        "channel 0->1: micro-batch 1 is sent once more than received: "
        "SendActivation(micro_batch=1) waits for a receive that never comes"
    )
    assert list(check_channels(plan)) == [channel(message, 0, 1)]


def test_a_receive_needs_a_send():
    plan = pipeline("S0", "R0 | R0 | r<0 r.0")
    message = (
        "channel 0->1: micro-batch 0 is received 2 times more than sent: "
        "PostRecvActivation(micro_batch=0) waits for a send that never comes"
    )
    assert list(check_channels(plan)) == [channel(message, 1, 2)]


def test_messages_match_by_order_and_not_by_name():
    plan = pipeline("S0 | S1 | S2", "R0 | R2 | R1", micro_batches=3)
    assert list(check_channels(plan)) == [
        channel(
            f"channel 0->1: transfer {number} sends micro-batch {sent} (stage 0, step {sent}) "
            f"and receives it as micro-batch {received}",
            1,
            sent,
        )
        for number, sent, received in [(2, 1, 2), (3, 2, 1)]
    ]


def test_a_post_counts_where_it_is_issued_and_not_where_it_is_waited_for():
    plan = pipeline("S0 S1", "r<1 r<0 | r.0 r.1", micro_batches=2)
    assert [finding.message for finding in check_channels(plan)] == [
        "channel 0->1: transfer 1 sends micro-batch 0 (stage 0, step 0) "
        "and receives it as micro-batch 1",
        "channel 0->1: transfer 2 sends micro-batch 1 (stage 0, step 0) "
        "and receives it as micro-batch 0",
    ]


def test_a_micro_batch_sent_as_another_does_not_wait_but_arrives_as_the_wrong_one():
    plan = pipeline("S1", "R0", micro_batches=2)
    assert [finding.message for finding in check_channels(plan)] == [
        "channel 0->1: transfer 1 sends micro-batch 1 (stage 0, step 0) "
        "and receives it as micro-batch 0",
    ]


def test_a_transfer_to_the_wrong_peer_is_missed_on_two_channels():
    plan = pipeline("S0:2", "R0 S0", "R0")
    assert list(check_channels(plan)) == [
        channel(
            "channel 0->1: micro-batch 0 is received once more than sent: "
            "RecvActivation(micro_batch=0) waits for a send that never comes",
            1,
            0,
        ),
        channel(
            "channel 0->2: micro-batch 0 is sent once more than received: "
            "SendActivation(micro_batch=0) waits for a receive that never comes",
            0,
            0,
        ),
    ]


def splits(text: str) -> list[Finding]:
    return list(check_splits(PlanHeader(format="", micro_batches=4, stages=3), program(1, text)))


def posted(end: str, *ids: int) -> str:
    return (
        "Post{}Activation(stage=1, micro_batch={}, buffer={}, peer={}) is never waited for".format(
            end, *ids
        )
    )


def waited(end: str, *ids: int) -> str:
    wait = "Wait{}Activation(stage=1, micro_batch={}, buffer={}, peer={})".format(end, *ids)
    return f"{wait} waits for a transfer that was not posted"


def test_posts_with_their_waits_have_no_findings():
    assert splits("r<0 s>1 | r<1 r.0 s.1 | r.1 S2 R2") == []


def test_a_post_is_waited_for():
    assert splits("s>0 | r<1") == [
        channel(posted("Send", 0, 0, 2), 1, 0),
        channel(posted("Recv", 1, 1, 0), 1, 1),
    ]


def test_a_wait_has_a_post_before_it():
    assert splits("r.0 | r<0") == [
        channel(waited("Recv", 0, 0, 0), 1, 0),
        channel(posted("Recv", 0, 0, 0), 1, 1),
    ]


def test_one_post_is_good_for_one_wait():
    assert splits("s>0 s.0 | s.0") == [channel(waited("Send", 0, 0, 2), 1, 1)]


def test_a_transfer_is_not_posted_again_while_it_is_in_flight():
    assert splits("s>0 | s>0 s.0") == [channel(posted("Send", 0, 0, 2), 1, 0)]


@pytest.mark.parametrize("wait", ["s.2", "s.0@1", "s.0:0"])
def test_a_wait_names_the_micro_batch_the_buffer_and_the_peer_of_its_post(wait):
    messages = [finding.message for finding in splits(f"s>0 | {wait}")]
    assert [m.rpartition(") ")[2] for m in messages] == [
        "waits for a transfer that was not posted",
        "is never waited for",
    ]


def test_a_send_is_not_the_wait_of_a_receive():
    assert [f.message for f in splits("r<0 s.0")] == [
        waited("Send", 0, 0, 2),
        posted("Recv", 0, 0, 0),
    ]


def with_epilogues(*epilogues: list) -> PipelinePlan:
    programs = tuple(program(stage_id, "", epilogue) for stage_id, epilogue in enumerate(epilogues))
    return PipelinePlan(micro_batches=1, stages=len(epilogues), programs=programs)


HERE, THERE = BroadcastLoss(source=2), BroadcastLoss(source=0)


def test_collectives_that_all_stages_enter_have_no_findings():
    assert list(check_collectives(with_epilogues([HERE], [HERE], [HERE]))) == []
    assert list(check_collectives(with_epilogues([], [], []))) == []
    assert list(check_collectives(with_epilogues([HERE, THERE], [HERE, THERE]))) == []


def test_all_stages_enter_a_collective():
    found = list(check_collectives(with_epilogues([HERE], [], [HERE])))
    message = (
        "epilogue: BroadcastLoss(source=2) of the other stages waits for stage 1, "
        "which never enters it"
    )
    assert found == [channel(message, 1)]


def test_all_stages_enter_the_same_collective():
    found = list(check_collectives(with_epilogues([HERE], [HERE], [THERE])))
    message = (
        "epilogue: collective 1 is BroadcastLoss(source=0) here "
        "and BroadcastLoss(source=2) elsewhere"
    )
    assert found == [channel(message, 2)]


def test_all_stages_enter_collectives_in_the_same_order():
    found = list(check_collectives(with_epilogues([HERE, THERE], [HERE, THERE], [THERE, HERE])))
    assert [(finding.stage_id, finding.message) for finding in found] == [
        (
            2,
            "epilogue: collective 1 is BroadcastLoss(source=0) here "
            "and BroadcastLoss(source=2) elsewhere",
        ),
        (
            2,
            "epilogue: collective 2 is BroadcastLoss(source=2) here "
            "and BroadcastLoss(source=0) elsewhere",
        ),
    ]
