"""Questions: no plan is too large for one, and each has both of its forms."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedcc import Outcome, check, check_schedule, checks, compile_pipeline, compile_stage
from schedcc.analysis.order import Order
from schedcc.analysis.times import GRAPH_LIMIT
from schedcc.checks.question import (
    HeaderQuestion,
    OrderQuestion,
    PipelineQuestion,
    ProgramQuestion,
    undecided,
)
from schedcc.table.table import PlanTable
from schedcc.testing.mutations import random_mutant
from schedcc.testing.strategies import at_corners, outcomes, sizes
from schedcc.verify import locally_sound
from schemas import Finding, TransportModel

REFUSAL = Finding(code="structure", message="not today")
REFUSING = [
    ProgramQuestion("weekday", holds=undecided, explain=lambda *_: iter([REFUSAL])),
    PipelineQuestion("weekday", holds=undecided, explain=lambda _: iter([REFUSAL])),
    OrderQuestion("weekday", holds=undecided, explain=lambda *_: iter([REFUSAL])),
]


@pytest.mark.parametrize("place", [0, 9])
@pytest.mark.parametrize("question", REFUSING, ids=lambda question: type(question).__name__)
def test_a_new_question_that_refuses_every_plan_is_heard_whatever_the_size(
    monkeypatch, question, place
):
    small, large = compile_pipeline(3, 2), compile_pipeline(400, 3)
    assert sum(len(step) for p in large.programs for step in p.steps) > GRAPH_LIMIT
    stage = compile_stage(2000, 2, 1)
    listed = (*checks.QUESTIONS[:place], question, *checks.QUESTIONS[place:])
    monkeypatch.setattr(checks, "QUESTIONS", listed)
    for plan in (small, large):
        report = check(plan)
        assert "weekday" in report.checks
        assert REFUSAL in report.findings
        assert not report.ok
    alone = check(stage)
    asked = isinstance(question, ProgramQuestion)
    assert ("weekday" in alone.checks, REFUSAL in alone.findings) == (asked, asked)


def test_a_schedule_that_is_not_compiled_as_a_whole_is_asked_new_questions_too(monkeypatch):
    seen = []

    def holds(table: PlanTable) -> bool:
        seen.append(len(table.rows))
        return True

    question = PipelineQuestion("seen", holds=holds, explain=lambda _: iter([REFUSAL]))
    monkeypatch.setattr(checks, "QUESTIONS", (*checks.QUESTIONS, question))
    report = check_schedule(1000, 3)
    assert report.ok
    assert "seen" in report.checks
    assert 0 < sum(seen) < GRAPH_LIMIT  # of a few periods


@pytest.mark.parametrize("kind", [ProgramQuestion, PipelineQuestion, OrderQuestion])
@pytest.mark.parametrize("missing", ["holds", "explain"])
def test_a_question_without_one_of_its_forms_cannot_be_made(kind, missing):
    forms = {"holds": undecided, "explain": lambda *_: iter([])}
    del forms[missing]
    with pytest.raises(TypeError, match=missing):
        kind("half", **forms)


@at_corners(overlap=True, outcome=Outcome())
@settings(max_examples=40, deadline=None)
@given(size=sizes(12, 6), overlap=st.booleans(), outcome=outcomes())
def test_every_question_is_decided_on_arrays_for_what_the_compiler_makes(size, overlap, outcome):
    plan = compile_pipeline(*size, overlap=overlap, outcome=outcome)
    table = PlanTable.of(plan, plan.programs)
    order = Order(table, TransportModel())
    for question in checks.QUESTIONS:
        assert question.holds(order if isinstance(question, OrderQuestion) else table), question


@settings(max_examples=60, deadline=None)
@given(size=sizes(6, 4), overlap=st.booleans(), seed=st.integers(0, 10**9), outcome=outcomes())
def test_a_question_that_holds_has_nothing_to_explain(size, overlap, seed, outcome):
    plan = random_mutant(compile_pipeline(*size, overlap=overlap, outcome=outcome), Random(seed))
    table = PlanTable.of(plan, plan.programs)
    order = Order(table, TransportModel())
    for question in checks.QUESTIONS:
        if isinstance(question, OrderQuestion):
            if locally_sound(table, alone=False) and question.holds(order):
                assert not list(question.explain(plan, order, "networkx"))
        elif question.holds(table):
            if isinstance(question, HeaderQuestion | PipelineQuestion):
                assert not list(question.explain(plan))
            else:
                assert not [f for p in plan.programs for f in question.explain(plan, p)]


def test_names_of_questions_are_their_own():
    names = [question.name for question in checks.QUESTIONS]
    assert len(set(names)) == len(names)
