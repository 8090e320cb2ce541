"""Groups of transfers in a plan: one entry of the queue, and no order in it."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedcc import TransportModel, check
from schedcc.testing.mutations import random_mutant
from schedcc.testing.plans import pipeline
from schedcc.testing.strategies import grouped_transfers
from schedcc.verify import verdict
from schemas import Finding
from tests.support.plans import deadlocks
from tests.tools.mutant_walk import MODELS as EVERY_MODEL
from tests.tools.mutant_walk import compare

EXCHANGE = "{ s>0:1 r<1:1 } s.0:1 r.1:1", "{ r<0:0 s>1:0 } r.0:0 s.1:0"
MODELS = [
    TransportModel(queue=queue, buffered_sends=buffered)
    for queue in ("stage", "channel")
    for buffered in (0, 1)
]


def structure(*texts: str) -> list[Finding]:
    findings = check(pipeline(*texts)).findings
    return [f for f in findings if f.code == "structure" and "group" in f.message.lower()]


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_members_of_a_group_may_stand_in_any_order(model):
    first, second = EXCHANGE
    swapped = second.replace("r<0:0 s>1:0", "s>1:0 r<0:0")
    assert not deadlocks(pipeline(first, second, micro_batches=2), model)
    assert not deadlocks(pipeline(first, swapped, micro_batches=2), model)


def test_the_same_posts_without_a_group_are_stuck():
    both_receive_first = [text.replace("{", "").replace("}", "") for text in EXCHANGE]
    both_receive_first[0] = both_receive_first[0].replace("s>0:1 r<1:1", "r<1:1 s>0:1")
    (finding,) = deadlocks(pipeline(*both_receive_first, micro_batches=2))
    assert "(queue)" in finding.message


def test_what_follows_a_group_waits_for_all_of_it():
    plan = pipeline("{ r<1:1 } S0:1 r.1:1", "R0:0 S1:0", micro_batches=2)
    (finding,) = deadlocks(plan)
    assert (
        finding.message.splitlines()[1:]
        == [
            "  stage 0, step 0: GroupEnd                           waits for  "
            "stage 0, step 0: PostRecvActivation(micro_batch=1)  (queue)",
        ]
        or "GroupEnd" in finding.message
    )
    assert not deadlocks(plan, TransportModel(queue="channel"))


def test_a_wait_for_one_member_waits_for_the_group():
    plan = pipeline("{ s>0:1 r<1:1 } s.0:1 S2:1 r.1:1", "R0:0 R2:0 S1:0", micro_batches=3)
    assert deadlocks(plan)
    assert not deadlocks(
        pipeline("s>0:1 s.0:1 S2:1 r<1:1 r.1:1", "R0:0 R2:0 S1:0", micro_batches=3)
    )


def test_a_group_between_stages_is_sound_as_a_whole():
    plan = pipeline(
        "L0 F0 | { s>0 } s.0 L1 F1 | { s>1 } s.1",
        "| L0 { r<0 } r.0 F0 | L1 { r<1 } r.1 F1",
        micro_batches=2,
    )
    for backend in ("networkx", "arrays"):
        assert not verdict(plan, None, backend).findings


@pytest.mark.parametrize(
    ("text", "message", "step"),
    [
        ("{ s>0 | } s.0", "GroupStart is not ended in its step", 0),
        ("{ s>0 s.0 }", "WaitSendActivation(micro_batch=0) stands in a group, which holds", 0),
        ("{ S0 }", "SendActivation(micro_batch=0) stands in a group, which holds only posts", 0),
        ("{ { s>0 } s.0", "GroupStart starts a group inside of another", 0),
        ("s>0 } s.0", "GroupEnd ends a group that was not started in its step", 0),
        ("{", "GroupStart is not ended in its step", 0),
    ],
)
def test_a_group_is_closed_in_its_step_and_holds_only_posts(text, message, step):
    finding = next(f for f in structure(f"L0 F0 {text}", "L0 R0 F0") if message in f.message)
    assert finding.step == step
    assert finding.stage_id == 0
    for backend in ("networkx", "arrays"):
        assert not verdict(pipeline(f"L0 F0 {text}", "L0 R0 F0"), None, backend).ok


@settings(max_examples=40)
@given(
    plan=grouped_transfers(),
    seed=st.integers(0, 10**9),
    changes=st.integers(0, 2),
    backend=st.sampled_from(["networkx", "arrays"]),
)
def test_the_executor_agrees_about_groups_under_every_model(plan, seed, changes, backend):
    random = Random(seed)
    for _ in range(changes):
        plan = random_mutant(plan, random)
    for model in EVERY_MODEL:
        compare(plan, model, backend)
