"""What `schedcc.testing` offers: it finds what is wrong, says so, and lets pass what is right."""

import re
import subprocess
import sys
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import schedcc.testing
from schedcc import Period, TransportModel, check, compile_pipeline
from schedcc.testing import (
    TRANSPORT_MODELS,
    FailedError,
    assert_agreement,
    assert_executes,
    assert_sound,
    execute,
    mutants_of,
    pipeline,
    plans,
    random_mutant,
    shapes,
    transport_models,
)
from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "how-to" / "testing.md").read_text(encoding="utf-8")


class Looped:
    name = "looped"

    def placement(self, stages, ranks):
        return [stage % ranks for stage in range(stages)]

    def forwards(self, micro_batches, stages, ranks):
        for stage in range(stages):
            lap, rank = divmod(stage, ranks)
            for m in range(micro_batches):
                yield lap * max(micro_batches, ranks) + rank + m, stage, m


class Boastful:
    """It promises to go on as it began, and pauses once, too late for a short plan to show."""

    name = "boastful"

    def placement(self, stages, ranks):  # noqa: ARG002
        return list(range(stages))

    def forwards(self, micro_batches, stages, ranks):  # noqa: ARG002
        for stage in range(stages):
            for m in range(micro_batches):
                yield stage + m + (m >= 15), stage, m

    def period(self, stages, ranks):  # noqa: ARG002
        return Period(1, 1)


@settings(max_examples=10)
@given(shape=shapes())
def test_the_schedules_that_ship_are_sound(shape):
    assert_sound(*shape)


@settings(max_examples=10)
@given(shape=shapes(Looped()))
def test_a_schedule_of_ones_own_is_sound(shape):
    assert_sound(*shape)


def test_the_examples_of_the_page_run():
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        if "shapes(Looped())" in block:
            exec(block, names)
    examples = [names[name] for name in names if name.startswith("test_")]
    assert len(examples) == 2
    for example in examples:
        settings(max_examples=5)(example)()


def test_a_period_that_is_not_kept_is_found():
    assert_sound(Boastful(), 6, 2)
    with pytest.raises(AssertionError) as raised:
        assert_sound(Boastful(), 20, 2)
    assert str(raised.value) == (
        "boastful with M = 20, S = 2, R = 2 does not keep its period: the program of rank 0 is "
        "another at full length"
    )


def test_a_plan_that_fails_is_told_with_its_sizes_the_failure_and_the_model():
    plan = pipeline("L0 F0", "R0 L0 F0").model_copy(update={"schedule": "mine"})
    with pytest.raises(AssertionError) as raised:
        assert_executes(plan)
    assert str(raised.value).startswith(
        "the plan of 'mine' for M = 1, S = 2, R = 2 fails: stuck "
        "(channel; one queue per stage, rendezvous)"
    )


def test_a_receive_that_names_another_stage_of_the_right_rank_fails():
    """Its value is right: messages match by ranks. What the plan says of it is not."""
    plan = compile_pipeline(4, 6, schedule="interleaved", ranks=2)
    program = plan.programs[1]
    steps = [list(step) for step in program.steps]
    for step in steps:
        for k, i in enumerate(step):
            if i.op == "RecvActivation" and i.stage == 3:
                step[k] = i.model_copy(update={"peer": 4})
    changed = program.model_copy(update={"steps": tuple(map(tuple, steps))})
    broken = plan.model_copy(update={"programs": (plan.programs[0], changed)})
    with pytest.raises(FailedError, match="stage 3 exchanges with stage 4") as raised:
        execute(broken)
    assert raised.value.kind == "structure"
    assert not check(broken).ok


@settings(max_examples=40)
@given(
    plan=mutants_of(plans()),
    model=transport_models() | transport_models(step_barrier=True),
    backend=st.sampled_from(["networkx", "arrays"]),
)
def test_the_checker_agrees_with_the_executor(plan, model, backend):
    assert_agreement(plan, model, backend)


def test_a_disagreement_is_told_from_both_sides(monkeypatch):
    broken = pipeline("L0 F0", "R0 L0 F0")
    sound = check(compile_pipeline(1, 1))
    monkeypatch.setattr("schedcc.testing.assertions.verdict", lambda *_: sound)
    with pytest.raises(AssertionError, match="the executor says channel: stuck, the checker sound"):
        assert_agreement(broken, TransportModel(), "arrays")


def test_there_are_six_models_and_the_strictest_is_first():
    assert len(set(map(str, TRANSPORT_MODELS))) == 6
    assert TRANSPORT_MODELS[0] == TransportModel()


def test_mutants_differ_from_their_plan():
    plan = compile_pipeline(4, 4, schedule="interleaved", ranks=2)
    changed = [random_mutant(plan, Random(seed)) != plan for seed in range(40)]
    assert sum(changed) > 30


def test_all_names_of_the_page_exist():
    for name in re.findall(r"`(\w+)[(`]", PAGE.partition("## What there is")[2].split("## ")[0]):
        public = name in schedcc.testing.__all__
        assert public or name in ("kind", "compile"), name


def test_the_compiler_works_without_hypothesis_and_testing_says_what_it_needs():
    program = """
import sys
sys.modules["hypothesis"] = None
import schedcc, schedcc.cli
assert schedcc.check(schedcc.compile_pipeline(4, 3)).ok
import schedcc.testing
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    said = "hypothesis is not installed: pip install 'schedcc[testing]' brings it"
    assert done.stderr.splitlines()[-1] == f"ModuleNotFoundError: {said}"


def test_hypothesis_is_not_imported_with_the_compiler():
    program = "import sys, schedcc, schedcc.cli; assert 'hypothesis' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=60)
