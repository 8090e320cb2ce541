"""Passes only split and move, and what they make of a sound plan is sound and faster."""

from collections import Counter
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from schedcc import Outcome, check, compile_pipeline, compile_stage
from schedcc.io.picture import cell
from schedcc.passes import PASSES, overlapped, split_transfers
from schedcc.testing.executor import execute
from schedcc.testing.mutations import random_mutant
from schedcc.testing.plans import pipeline
from schedcc.testing.strategies import at_corners, sizes
from schemas import PipelinePlan, RankProgram


def lowered(plan: PipelinePlan) -> PipelinePlan:
    programs = tuple(overlapped(program, plan) for program in plan.programs)
    return plan.model_copy(update={"programs": programs})


def contents(program: RankProgram) -> Counter[object]:
    return Counter(instruction for step in program.steps for instruction in step)


@at_corners()
@given(size=sizes())
def test_a_pass_only_reorders_once_transfers_are_split(size):
    micro_batches, stages = size
    plan = compile_pipeline(*size)
    for program in plan.programs:
        split = split_transfers(program, plan)
        assert contents(overlapped(program, plan)) == contents(split)
        assert len(overlapped(program, plan).steps) == micro_batches + stages - 1
        assert overlapped(program, plan).epilogue == program.epilogue


@at_corners()
@given(size=sizes())
def test_a_second_application_changes_nothing(size):
    plan = compile_pipeline(*size)
    for program in plan.programs:
        done = overlapped(program, plan)
        assert overlapped(done, plan) == done
        for transform in PASSES:
            program = transform(program, plan)
            assert transform(program, plan) == program


@at_corners()
@settings(max_examples=40)
@given(size=sizes(8, 6))
def test_every_pass_takes_and_leaves_sound_plans(size):
    plan = compile_pipeline(*size)
    for transform in PASSES:
        programs = tuple(transform(program, plan) for program in plan.programs)
        plan = plan.model_copy(update={"programs": programs})
        assert check(plan).ok
        execute(plan)


@at_corners(stage_id=7)
@given(size=sizes(), stage_id=st.integers(0, 7))
def test_compile_knows_the_overlapped_form(size, stage_id):
    plan = compile_pipeline(*size, overlap=True)
    assert plan == lowered(compile_pipeline(*size))
    stage_id %= size[1]
    assert compile_stage(*size, stage_id, overlap=True) == plan.stage(stage_id)


def test_the_overlapped_form_of_four_micro_batches_on_three_stages():
    # fmt: off
    expected = pipeline(
        "L0 F0 s>0 | L1 F1 s>1      | L2 s.0 F2 s>2  | L3 s.1 F3 s>3  |                | s.2 s.3",
        "r<0 r<1   | r.0 F0 s>0 r<2 | r.1 F1 s>1 r<3 | s.0 r.2 F2 s>2 | s.1 r.3 F3 s>3 | s.2 s.3",
        "r<0 r<1   |                | L0 r.0 F0 r<2  | L1 r.1 F1 r<3  | L2 r.2 F2      | L3 r.3 F3",
        micro_batches=4,
    )
    # fmt: on
    found = compile_pipeline(4, 3, overlap=True)
    assert [p.steps for p in found.programs] == [p.steps for p in expected.programs]


@at_corners()
@given(size=sizes())
def test_a_receive_crosses_the_forward_before_its_own(size):
    """On every stage but the first, `m + 1` is under way while `m` is forwarded."""
    for program in compile_pipeline(*size, overlap=True).programs[1:]:
        order = [(i.op, i.micro_batch) for step in program.steps for i in step]
        for m in range(size[0] - 1):
            posted = order.index(("PostRecvActivation", m + 1))
            awaited = order.index(("WaitRecvActivation", m + 1))
            assert posted < order.index(("ForwardPass", m)) < awaited


def test_passes_keep_any_sound_plan_sound():
    """Not only what the schedule makes: also what a random walk among sound plans arrives at."""
    random = Random(0)
    tried = 0
    plan = compile_pipeline(3, 3, outcome=Outcome(bcast_loss=False))
    for _ in range(1500):
        mutant = random_mutant(plan, random)
        if check(mutant).ok:
            tried += 1
            after = lowered(mutant)
            assert check(after).ok, (mutant, check(after).findings)
            execute(after)
            plan = mutant
        if random.random() < 0.02:
            size = random.randint(1, 4), random.randint(1, 4)
            plan = compile_pipeline(*size, outcome=Outcome(bcast_loss=False))
    assert tried > 100


EXCHANGE = "L0 F0 { s>0 } s.0 L1 F1 { s>1 } s.1 L2 F2 s>2 s.2"
TAKING = "L0 { r<0 } r.0 F0 L1 r<1 r.1 F1 L2 { r<2 } r.2 F2"


def test_nothing_leaves_a_group_enters_one_or_passes_one_of_its_channel():
    plan = lowered(pipeline(EXCHANGE, TAKING, micro_batches=3))
    assert [cell(step).plain for program in plan.programs for step in program.steps] == [
        "L0 F0 { s>0 } L1 F1 { s>1 } L2 s.0 F2 s>2 s.1 s.2",
        "L0 { r<0 } r<1 r.0 F0 L1 r.1 F1 L2 { r<2 } r.2 F2",
    ]
    assert check(plan).ok
    assert lowered(plan) == plan
