"""Verification: all questions about a plan, answered on one of two backends.

- Up to `GRAPH_LIMIT` instructions, each question walks the plan, and networkx looks for cycles.
- Beyond it, each question looks at arrays. Only if one of them does not hold is the plan walked, to
  explain what is wrong with it.

Both give the same verdict on everything; a test holds them to it.
"""

from itertools import chain

from schedcc import checks
from schedcc.analysis.graph import one_program_a_rank
from schedcc.analysis.order import Order
from schedcc.analysis.times import Backend, backend_for
from schedcc.checks.limit import limited
from schedcc.checks.question import (
    HeaderQuestion,
    OrderQuestion,
    PipelineQuestion,
    ProgramQuestion,
)
from schedcc.table.table import PlanTable
from schemas import (
    Finding,
    PipelinePlan,
    RankProgram,
    Report,
    StagePlan,
    TransportModel,
)


def check(plan: PipelinePlan | StagePlan, transport: TransportModel | None = None) -> Report:
    """Verify a plan.

    A `PipelinePlan` is asked everything. A `StagePlan` is asked what one rank alone can answer;
    whether its transfers meet their counterparts is not among it, as `Report.checks` shows.

    Args:
        plan: A plan from anywhere.
        transport: What its transfers may rely on; default: the strictest model, under which a
            sound plan is sound everywhere.

    Returns:
        A report with the findings of every check, of which there are no more than
        `schedcc.checks.limit.LISTED` of one kind; `Report.ok` if none is an error.
    """
    return verdict(plan, transport, backend_for(_programs(plan)))


def verdict(
    plan: PipelinePlan | StagePlan, transport: TransportModel | None, backend: Backend
) -> Report:
    """What `check` reports, from a backend of the caller's choice."""
    transport = transport or TransportModel()
    alone = isinstance(plan, StagePlan)
    table = None if backend == "networkx" else PlanTable.of(plan, _programs(plan))
    if table is not None and not locally_sound(table, alone=alone):
        table = None
    findings = _walked(plan) if table is None else []
    if isinstance(plan, PipelinePlan):
        order = Order(one_program_a_rank(plan) if table is None else table, transport)
        if table is None or not order_sound(order):
            findings += _misordered(plan, order, backend)
    return Report(
        checks=questions(alone=alone),
        transport=None if alone else transport,
        findings=tuple(findings),
    )


def questions(*, alone: bool) -> tuple[str, ...]:
    """The names of all questions, or of those that one rank can answer alone."""
    return tuple(
        question.name
        for question in checks.QUESTIONS
        if not alone or isinstance(question, HeaderQuestion | ProgramQuestion)
    )


def locally_sound(table: PlanTable, *, alone: bool) -> bool:
    """Whether a look at arrays finds nothing wrong with programs, but for the order of waits.

    Args:
        table: The programs.
        alone: Whether they are asked only what each can answer alone.
    """
    return all(
        question.holds(table)
        for question in checks.QUESTIONS
        if isinstance(question, HeaderQuestion | ProgramQuestion)
        or (isinstance(question, PipelineQuestion) and not alone)
    )


def order_sound(order: Order) -> bool:
    """Whether a look at arrays finds nothing wrong with the order of waits in sound programs."""
    return all(q.holds(order) for q in checks.QUESTIONS if isinstance(q, OrderQuestion))


def _walked(plan: PipelinePlan | StagePlan) -> list[Finding]:
    """All findings but for the order of waits."""
    found: list[Finding] = []
    for question in checks.QUESTIONS:
        if isinstance(question, HeaderQuestion):
            found += limited(question.explain(plan))
        elif isinstance(question, ProgramQuestion):
            explained = (question.explain(plan, program) for program in _programs(plan))
            found += limited(chain.from_iterable(explained))
        elif isinstance(question, PipelineQuestion) and isinstance(plan, PipelinePlan):
            found += limited(question.explain(plan))
    return found


def _misordered(plan: PipelinePlan, order: Order, backend: Backend) -> list[Finding]:
    """All findings about the order of waits."""
    found: list[Finding] = []
    for question in checks.QUESTIONS:
        if isinstance(question, OrderQuestion):
            found += limited(question.explain(plan, order, backend))
    return found


def _programs(plan: PipelinePlan | StagePlan) -> tuple[RankProgram, ...]:
    return (plan.program,) if isinstance(plan, StagePlan) else plan.programs
