"""Spoilt plans: which must be refused, and with which finding, is said beforehand."""

from collections.abc import Iterable
from functools import cache
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedcc import Outcome, check, compile_pipeline
from schedcc.schedules.epilogue import epilogue
from schedcc.testing.mutations import Mutant, mutants, with_epilogue
from schedcc.testing.plans import with_program
from schedcc.testing.strategies import at_corners, sizes
from schemas import (
    AllReduceLoss,
    AllReduceMetrics,
    BroadcastLogits,
    BroadcastLoss,
    CollectLogits,
    ComputeMetrics,
    EpilogueInstruction,
    HandOver,
    MoveLogits,
    PipelinePlan,
    ReduceLoss,
    StepInstruction,
)
from tests.support.plans import all_outcomes

LOAD, FORWARD, SEND, RECEIVE = (
    "LoadMicroBatch",
    "ForwardPass",
    "SendActivation",
    "RecvActivation",
)
REQUIRED = {
    ("drop", LOAD): "buffer",
    ("drop", FORWARD): "coverage buffer",
    ("drop", SEND): "coverage channel buffer",
    ("drop", RECEIVE): "channel buffer",
    ("repeat", LOAD): "buffer",
    ("repeat", FORWARD): "coverage",
    ("repeat", SEND): "coverage channel",
    ("repeat", RECEIVE): "channel buffer",
    ("micro_batch in range", LOAD): "buffer",
    ("micro_batch in range", FORWARD): "coverage buffer",
    ("micro_batch in range", SEND): "coverage channel buffer",
    ("micro_batch in range", RECEIVE): "channel buffer",
    ("micro_batch out of range", LOAD): "structure buffer",
    ("micro_batch out of range", FORWARD): "structure coverage buffer",
    ("micro_batch out of range", SEND): "structure coverage channel buffer",
    ("micro_batch out of range", RECEIVE): "structure channel buffer",
    ("buffer in range", LOAD): "buffer",
    ("buffer in range", FORWARD): "buffer",
    ("buffer in range", SEND): "buffer",
    ("buffer in range", RECEIVE): "buffer",
    ("buffer out of range", LOAD): "structure buffer",
    ("buffer out of range", FORWARD): "structure buffer",
    ("buffer out of range", SEND): "structure buffer",
    ("buffer out of range", RECEIVE): "structure buffer",
    ("peer in range", SEND): "structure channel",
    ("peer in range", RECEIVE): "structure channel",
    ("peer out of range", SEND): "structure channel",
    ("peer out of range", RECEIVE): "structure channel",
}
"""Every one of these findings must be among those of such a mutant; none is harmless."""


def required(mutant: Mutant, stages: int) -> set[str]:
    """The findings that a mutant must have; none if it is harmless."""
    if mutant.kind != "swap":
        (victim,) = mutant.victims
        return set(REQUIRED[mutant.kind, victim.op].split())
    # A swap reverses its two victims and each of them with everything between.
    first, *between, second = mutant.victims
    reversed_pairs = [(first, second), *product([first], between), *product(between, [second])]
    return {
        finding
        for one, other in reversed_pairs
        for finding in conflict(one, other, mutant.stage_id, stages)
    }


def conflict(
    one: StepInstruction, other: StepInstruction, stage_id: int, stages: int
) -> tuple[str, ...]:
    """What is wrong with two instructions of a stage that change places; nothing if they commute.

    They commute unless they are of one kind, whose order is that of the micro-batches, or one
    writes a place that the other touches. Loads name what they load: their order is free.
    """
    if one.op == other.op != LOAD:
        return ("coverage",) if one.op == FORWARD else ("channel",)
    touched = [touches(one, stage_id, stages), touches(other, stage_id, stages)]
    clash = any(
        touched[0][place] + touched[1][place] != "rr" for place in touched[0].keys() & touched[1]
    )
    return ("buffer",) if clash else ()


def touches(instruction: StepInstruction, stage_id: int, stages: int) -> dict[tuple, str]:
    """The places that an instruction reads (`r`) or writes (`w`)."""
    first, last = stage_id == 0, stage_id == stages - 1
    table = {
        LOAD: {"input": "w" if first else "", "label": "w" if last else ""},
        RECEIVE: {"input": "w"},
        FORWARD: {"input": "r", "label": "r" if last else "", "output": "w"},
        SEND: {"output": "r"},
    }
    return {(instruction.buffer, place): how for place, how in table[instruction.op].items() if how}


def verify(mutant: Mutant, stages: int) -> None:
    expected = required(mutant, stages)
    findings = check(mutant.plan).findings
    codes = {finding.code.value for finding in findings}
    if expected:
        assert expected <= codes, (str(mutant), codes)
    else:
        assert codes == set(), (str(mutant), findings)


@pytest.mark.parametrize("size", [*product([1, 2, 3], [1, 2, 3]), (4, 1), (5, 2)], ids=str)
def test_every_mutant_of_a_small_plan_gets_the_findings_said_beforehand(size):
    for mutant in mutants(compile_pipeline(*size)):
        verify(mutant, stages=size[1])


@at_corners(number=0)
@settings(max_examples=60)
@given(size=sizes(8, 6), number=st.integers(0, 10**6))
def test_any_mutant_gets_the_findings_said_beforehand(size, number):
    every = list(mutants(compile_pipeline(*size)))
    verify(every[number % len(every)], stages=size[1])


def test_both_harmless_and_harmful_swaps_exist():
    swaps = [m for m in mutants(compile_pipeline(3, 3)) if m.kind == "swap"]
    harmless = [m for m in swaps if not required(m, 3)]
    assert 10 < len(harmless) < len(swaps) / 2


def test_instructions_may_move_to_another_step_if_their_order_stays():
    plan = compile_pipeline(3, 3)
    for program in plan.programs:
        everything = tuple(i for step in program.steps for i in step)
        moved = program.model_copy(update={"steps": ((), everything)})
        assert check(with_program(plan, moved)).ok


def test_a_program_moved_to_another_stage_is_refused():
    plan = compile_pipeline(2, 3)
    renamed = plan.programs[1].model_copy(update={"rank": 2})
    spoilt = plan.model_copy(update={"programs": (plan.programs[0], renamed, plan.programs[2])})
    messages = [finding.message for finding in check(spoilt).findings]
    assert "no program for stage 1 (stages=3)" in messages
    assert "2 programs for stage 2, needed 1" in messages


BROADCAST = BroadcastLoss(source=1)
EPILOGUE_MUTANTS = {
    "the losses are not reduced": ("AB C", "structure"),
    "only one replica": ("RB C", ""),
    "the last stage does not broadcast": ("RA C", "channel"),
    "no logits": ("RAB", ""),
    "nothing at all on the last stage": ("", "channel"),
    "reduced twice": ("RRAB C", "structure"),
    "averaged twice": ("RAAB C", "structure"),
    "broadcast twice": ("RABB C", "structure channel"),
    "collected twice": ("RAB CC", "structure"),
    "averaged before it is reduced": ("ARB C", "structure"),
    "broadcast before it is reduced": ("BRA C", "structure"),
    "broadcast before it is averaged": ("RBA C", "structure"),
    "logits first": ("C RAB", ""),
    "logits in the middle": ("RA C B", ""),
    "losses kept, yet averaged": ("rAB C", "structure"),
    "losses kept": ("rB C", ""),
    "broadcast from a stage without a loss": ("RA0 C", "structure channel"),
    "broadcast from a stage that does not exist": ("RA2 C", "structure channel"),
    "metrics besides": ("RAPB C", ""),
    "metrics first": ("PRAB C", ""),
    "metrics after the broadcast": ("RABP C", "structure"),
    "a sum": ("sAB C", ""),
    "logits moved, but nobody takes them": ("RAB M", "channel"),
    "logits broadcast, but nobody takes them": ("RAB L", "channel"),
    "logits handed out in two ways": ("RAB C L", "structure channel"),
}
LETTERS: dict[str, EpilogueInstruction] = {
    "R": ReduceLoss(reduction="avg"),
    "r": ReduceLoss(reduction="none"),
    "A": AllReduceLoss(),
    "B": BROADCAST,
    "0": BroadcastLoss(source=0),
    "2": BroadcastLoss(source=2),
    "C": CollectLogits(),
    "s": ReduceLoss(reduction="sum"),
    "P": ComputeMetrics(),
    "p": AllReduceMetrics(),
    "M": MoveLogits(source=1, destination=0),
    "L": BroadcastLogits(source=1),
}


@pytest.mark.parametrize("name", EPILOGUE_MUTANTS)
def test_a_spoilt_epilogue_gets_the_findings_said_beforehand(name):
    letters, expected = EPILOGUE_MUTANTS[name]
    plan = compile_pipeline(2, 2, outcome=Outcome(return_logits=True, replicas=2))
    assert plan.programs[1].epilogue == tuple(LETTERS[letter] for letter in "RABC")
    spoilt = [LETTERS[letter] for letter in letters.replace(" ", "")]
    findings = check(with_epilogue(plan, plan.programs[1], spoilt)).findings
    assert {finding.code.value for finding in findings} == set(expected.split())


ORDER = (
    {"ReduceLoss", "AllReduceLoss", "BroadcastLoss"},
    {"ComputeMetrics", "AllReduceMetrics", "BroadcastLoss"},
    {"BroadcastLoss", "MoveLogits", "BroadcastLogits"},
)
"""Among the instructions of one of these sets the order matters, and otherwise it is free."""

Orders = tuple[tuple[EpilogueInstruction, ...], ...]


def orders(program_epilogue: Iterable[EpilogueInstruction]) -> Orders:
    """What two epilogues have in common that do the same.

    Whether metrics are computed over the replicas is free, whatever happens to the loss.
    """
    instructions = tuple(
        ComputeMetrics() if i.op == "AllReduceMetrics" else i for i in program_epilogue
    )
    anyhow = tuple(sorted(instructions, key=repr))
    return (anyhow, *(tuple(i for i in instructions if i.op in ops) for ops in ORDER))


@cache
def orders_of_outcomes(stages: int) -> set[tuple[Orders, ...]]:
    return {
        tuple(orders(epilogue(range(stages), s, outcome)) for s in range(stages))
        for outcome in all_outcomes()
    }


def is_an_outcome(plan: PipelinePlan) -> bool:
    """Whether somebody could have asked for this epilogue."""
    return tuple(orders(p.epilogue) for p in plan.programs) in orders_of_outcomes(plan.stages)


@settings(max_examples=150)
@given(
    stages=st.integers(1, 3),
    outcome=st.sampled_from(list(all_outcomes())),
    stage_id=st.integers(0, 2),
    data=st.data(),
)
def test_an_epilogue_is_sound_exactly_if_somebody_could_have_asked_for_it(
    stages, outcome, stage_id, data
):
    plan = compile_pipeline(1, stages, outcome=outcome)
    program = plan.programs[stage_id % stages]
    last = stages - 1
    letters = LETTERS | {
        "B": BroadcastLoss(source=last),
        "M": MoveLogits(source=last, destination=0),
        "L": BroadcastLogits(source=last),
    }
    if stages == 1:  # one stage may broadcast to itself: nobody asks for that, but it does no harm
        letters = {key: i for key, i in letters.items() if not isinstance(i, HandOver)}
    free = st.lists(st.sampled_from(sorted(letters)).map(letters.get), max_size=5)
    near = st.permutations(program.epilogue)
    spoilt = data.draw(free | near)
    mutant = with_epilogue(plan, program, spoilt)
    assert check(mutant).ok == is_an_outcome(mutant)
