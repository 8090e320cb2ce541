"""`structure`, of all ranks: does each of them have its program?"""

from collections import Counter
from collections.abc import Iterator

from schedcc.checks.question import PipelineQuestion, finding
from schedcc.table.ranges import gaps, in_words
from schedcc.table.table import PlanTable
from schemas import Finding, FindingCode, PipelinePlan


def ranks_hold(table: PlanTable) -> bool:
    """Is there one program of each rank?"""
    ranks = sorted(table.rank_ids.tolist())
    return len(ranks) == table.ranks and ranks == list(range(table.ranks))


def check_ranks(plan: PipelinePlan) -> Iterator[Finding]:
    """Does the plan have one program for each of its ranks?"""
    counts = Counter(program.rank for program in plan.programs)
    unit = plan.unit
    if missing := gaps(counts, plan.ranks):
        yield Finding(
            code=FindingCode.STRUCTURE,
            message=f"no program for {in_words(unit, missing)} ({unit}s={plan.ranks})",
        )
    for rank, count in counts.items():
        if count > 1:
            message = f"{count} programs for {unit} {rank}, needed 1"
            yield finding(FindingCode.STRUCTURE, plan, rank, message)


RANKS = PipelineQuestion("ranks", holds=ranks_hold, explain=check_ranks)
