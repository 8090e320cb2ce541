"""`check_structure` and `check_ranks` on bad programs written by hand."""

import pytest

from schedcc.checks.ranks import check_ranks
from schedcc.checks.structure import check_structure
from schedcc.testing.plans import pipeline, program
from schemas import (
    AllReduceLoss,
    AllReduceMetrics,
    BroadcastLogits,
    BroadcastLoss,
    CollectLogits,
    Finding,
    MoveLogits,
    PipelinePlan,
    PlanHeader,
    RankProgram,
    ReduceLoss,
)
from schemas.instruction_set.epilogue import KEPT, REDUCED


def header(micro_batches: int, stages: int, num_buffers: int = 2) -> PlanHeader:
    return PlanHeader(
        format="", micro_batches=micro_batches, stages=stages, num_buffers=num_buffers
    )


def structure(message: str, stage_id: int | None = None, step: int | None = None) -> Finding:
    return Finding(code="structure", message=message, stage_id=stage_id, step=step)


def test_a_sound_program_has_no_findings():
    assert list(check_structure(header(2, 3), program(1, "| R0 F0 | R1 S0 F1 | S1"))) == []


@pytest.mark.parametrize("micro_batch", [-1, 2, 10**30])
def test_a_micro_batch_must_exist(micro_batch):
    found = list(check_structure(header(2, 1), program(0, f"L0 F0 | F{micro_batch}@0")))
    message = f"ForwardPass(micro_batch={micro_batch}): micro_batch is {micro_batch}, needed 0 to 1"
    assert found == [structure(message, 0, 1)]


@pytest.mark.parametrize("buffer", [-1, 2, 10**30])
def test_a_buffer_must_exist(buffer):
    found = list(check_structure(header(1, 1), program(0, f"L0@{buffer} F0")))
    message = f"LoadMicroBatch(micro_batch=0): buffer is {buffer}, needed 0 to 1"
    assert found == [structure(message, 0, 0)]


def test_with_one_buffer_or_one_micro_batch_the_only_id_is_0():
    found = list(check_structure(header(1, 1, 1), program(0, "L0@1 F1@0")))
    assert found == [
        structure("LoadMicroBatch(micro_batch=0): buffer is 1, needed 0", 0, 0),
        structure("ForwardPass(micro_batch=1): micro_batch is 1, needed 0", 0, 0),
    ]


@pytest.mark.parametrize("peer", [-1, 3, 10**30])
def test_a_peer_must_exist(peer):
    found = list(check_structure(header(1, 3), program(1, f"R0 F0 S0:{peer}")))
    message = f"SendActivation(micro_batch=0): peer is {peer}, needed 0 to 2"
    assert found == [structure(message, 1, 0)]


def test_an_activation_goes_to_the_next_stage():
    found = list(check_structure(header(1, 3), program(0, "L0 F0 S0:2 s>0:0 s.0:0")))
    flow = "but the input of stage 1 is the output of stage 0"
    assert found == [
        structure(f"SendActivation(micro_batch=0): peer is 2, {flow}", 0, 0),
        structure(f"PostSendActivation(micro_batch=0): peer is 0, {flow}", 0, 0),
        structure(f"WaitSendActivation(micro_batch=0): peer is 0, {flow}", 0, 0),
    ]


def test_an_activation_comes_from_the_stage_before():
    found = list(check_structure(header(1, 4), program(2, "R0:0 r<0:3 r.0:3")))
    flow = "but the input of stage 2 is the output of stage 1"
    assert found == [
        structure(f"RecvActivation(micro_batch=0): peer is 0, {flow}", 2, 0),
        structure(f"PostRecvActivation(micro_batch=0): peer is 3, {flow}", 2, 0),
        structure(f"WaitRecvActivation(micro_batch=0): peer is 3, {flow}", 2, 0),
    ]


def test_only_the_first_and_the_last_stage_load():
    found = list(check_structure(header(1, 3), program(1, "| L0")))
    message = "found on stage 1 of 3, belongs on the first or the last stage"
    assert found == [structure(f"LoadMicroBatch(micro_batch=0): {message}", 1, 1)]


def test_the_first_stage_does_not_receive():
    found = list(check_structure(header(1, 2), program(0, "R0:1 r<0:1 r.0:1")))
    message = "found on stage 0 of 2, belongs on any stage but the first"
    assert [finding.message for finding in found] == [
        f"{op}(micro_batch=0): {message}"
        for op in ("RecvActivation", "PostRecvActivation", "WaitRecvActivation")
    ]


def test_the_last_stage_does_not_send():
    found = list(check_structure(header(1, 2), program(1, "S0:0 s>0:0 s.0:0")))
    message = "found on stage 1 of 2, belongs on any stage but the last"
    assert [finding.message for finding in found] == [
        f"{op}(micro_batch=0): {message}"
        for op in ("SendActivation", "PostSendActivation", "WaitSendActivation")
    ]


@pytest.mark.parametrize("stage_id", [-1, 2, 10**30])
def test_a_program_must_be_of_a_stage_that_exists(stage_id):
    found = list(check_structure(header(9, 2), program(stage_id, "F77")))
    assert found == [structure(f"stage_id is {stage_id}, needed 0 to 1", stage_id)]


def epilogue_messages(stage_id: int, *epilogue) -> list[str]:
    found = list(check_structure(header(1, 2), program(stage_id, "", epilogue)))
    assert {(f.code, f.stage_id, f.step) for f in found} <= {("structure", stage_id, None)}
    return [finding.message for finding in found]


def test_results_are_made_on_the_last_stage():
    assert epilogue_messages(0, ReduceLoss(), AllReduceLoss(), CollectLogits()) == [
        f"{op}: found on stage 0 of 2, belongs on the last stage"
        for op in ("ReduceLoss(reduction='avg')", "AllReduceLoss()", "CollectLogits()")
    ]


def test_the_loss_is_broadcast_from_the_last_stage():
    message = "BroadcastLoss(source=0): source is 0, but the loss is on stage 1"
    assert epilogue_messages(0, BroadcastLoss(source=0)) == [message]


def test_an_epilogue_does_nothing_twice():
    twice = epilogue_messages(1, ReduceLoss(), CollectLogits(), CollectLogits())
    message = "found a second time in the epilogue, needed once"
    assert twice == [f"epilogue: CollectLogits(): {message}"]


def test_a_loss_is_reduced_before_it_is_broadcast():
    needed = " or ".join(map(repr, (*REDUCED, KEPT)))
    message = f"epilogue: BroadcastLoss(source=1): no {needed} before it, on whose result it works"
    assert epilogue_messages(1, BroadcastLoss(source=1)) == [message]
    assert epilogue_messages(1, BroadcastLoss(source=1), ReduceLoss()) == [message]


@pytest.mark.parametrize("earlier", [(), (ReduceLoss(reduction="none"),)])
def test_only_a_reduced_loss_is_reduced_over_replicas(earlier):
    needed = " or ".join(map(repr, REDUCED))
    message = f"epilogue: AllReduceLoss(): no {needed} before it, on whose result it works"
    assert epilogue_messages(1, *earlier, AllReduceLoss()) == [message]


@pytest.mark.parametrize("late", [AllReduceLoss(), AllReduceMetrics()])
def test_results_are_complete_before_they_are_broadcast(late):
    found = epilogue_messages(1, ReduceLoss(), BroadcastLoss(source=1), late)
    message = "found after BroadcastLoss, which hands out what it changes"
    assert found == [f"epilogue: {late}: {message}"]


def test_logits_are_handed_out_once():
    found = epilogue_messages(1, CollectLogits(), BroadcastLogits(source=1))
    message = "CollectLogits() has handed out the logits already"
    assert found == [f"epilogue: BroadcastLogits(source=1): {message}"]


@pytest.mark.parametrize(
    ("stage_id", "move", "complaint"),
    [
        (0, MoveLogits(source=0, destination=1), "source is 0, but the logits are on stage 2"),
        (2, MoveLogits(source=2, destination=2), "destination is 2, needed another stage of 3"),
        (2, MoveLogits(source=2, destination=-1), "destination is -1, needed another stage of 3"),
        (
            1,
            MoveLogits(source=2, destination=0),
            "found on stage 1, which is neither its source nor its destination",
        ),
    ],
)
def test_logits_move_from_the_last_stage_to_another(stage_id, move, complaint):
    found = list(check_structure(header(1, 3), program(stage_id, "", [move])))
    assert [finding.message for finding in found] == [f"{move}: {complaint}"]


def test_every_stage_has_a_program():
    plan = pipeline("L0 F0 S0", "R0 F0 S0", "R0 L0 F0")
    assert list(check_ranks(plan)) == []
    holes = plan.model_copy(
        update={
            "stages": 7,
            "ranks": 7,
            "placement": tuple(range(7)),
            "programs": plan.programs[1:2],
        }
    )
    message = "no program for stages 0, 2-6 (stages=7)"
    assert list(check_ranks(holes)) == [structure(message)]


def test_no_stage_has_two_programs():
    twice = RankProgram(rank=0, steps=())
    plan = PipelinePlan(micro_batches=1, stages=1, programs=(twice, twice))
    assert list(check_ranks(plan)) == [structure("2 programs for stage 0, needed 1", 0)]


def test_a_plan_without_programs_lacks_them_all_however_many():
    plan = PipelinePlan(micro_batches=1, stages=10**12, programs=())
    message = f"no program for stages 0-{10**12 - 1} (stages={10**12})"
    assert list(check_ranks(plan)) == [structure(message)]
