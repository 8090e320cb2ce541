"""The checker's verdict against an execution of the plan: sound exactly when all goes well."""

from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings

from schedcc import Outcome, check, compile_pipeline
from schemas import PipelinePlan
from tests.executor import FailedError, execute
from tests.mutations import random_mutant
from tests.plans import all_outcomes, pipeline
from tests.strategies import at_corners, outcomes, sizes


def complaint(plan: PipelinePlan) -> str | None:
    """What goes wrong when the plan is executed, or `None`."""
    try:
        execute(plan)
    except FailedError as error:
        return str(error)
    return None


@at_corners(outcome=Outcome())
@settings(max_examples=50)
@given(size=sizes(8, 6), outcome=outcomes())
def test_compiled_plans_execute(size, outcome):
    execute(compile_pipeline(*size, outcome=outcome))


@pytest.mark.parametrize(
    ("expected", "plan"),
    [
        ("not one program for each stage", pipeline("L0 F0").model_copy(update={"stages": 2})),
        ("stuck", pipeline("", "R0 L0 F0")),
        ("a value is lost", pipeline("L0 F0", "")),
        ("stuck", pipeline("L0 F0 S0:0")),
        ("None instead of x0", pipeline("F0")),
        ("f0(x0) instead of f0(x1)", pipeline("L0 F0 S1@0", "", micro_batches=2)),
        ("received f0(x0) as f0(x1)", pipeline("L0 F0 S0", "R1", micro_batches=2)),
        ("a value is lost", pipeline("L0 | L0 F0")),
        ("a place in flight is read", pipeline("L0 F0 S0", "r<0 L0 F0 r.0")),
        ("nothing was posted", pipeline("L0 F0 S0", "r.0 L0 F0 r<0")),
        ("never waited for", pipeline("L0 F0 s>0", "R0 L0 F0")),
        ("not all forwarded in order", pipeline("L1 F1 | L0 F0", micro_batches=2)),
        ("no such buffer", pipeline("L0@2 F0@2")),
    ],
)
def test_the_executor_sees_what_goes_wrong(expected, plan):
    assert complaint(plan) == expected


def a_plan(random: Random) -> PipelinePlan:
    micro_batches, stages = random.randint(1, 4), random.randint(1, 4)
    return compile_pipeline(micro_batches, stages, outcome=random.choice(list(all_outcomes())))


@pytest.mark.parametrize("seed", range(3))
def test_a_mutant_is_found_unsound_exactly_when_it_does_not_execute(seed):
    """A random walk: from a plan to a mutant of it, and on from there as long as it is sound."""
    random = Random(seed)
    verdicts: Counter[bool] = Counter()
    plan = a_plan(random)
    for number in range(1500):
        mutant = random_mutant(plan, random)
        failure, report = complaint(mutant), check(mutant)
        assert report.ok == (failure is None), (number, failure, report.findings, mutant)
        verdicts[report.ok] += 1
        if random.random() < 0.02:
            plan = a_plan(random)
        elif report.ok or random.random() < 0.02:  # some flaws show only in company
            plan = mutant
    assert min(verdicts[True], verdicts[False]) > 200, verdicts  # neither verdict is for free
