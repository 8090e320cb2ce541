"""`structure`, of all stages: does each of them have its program?"""

from collections import Counter
from collections.abc import Iterator

from schedcc.checks.question import PipelineQuestion
from schedcc.table.ranges import gaps, in_words
from schedcc.table.table import PlanTable
from schemas import Finding, FindingCode, PipelinePlan


def stages_hold(table: PlanTable) -> bool:
    """Are there programs of just the stages that the table is to hold?"""
    needed = table.needed
    return len(table.stage_ids) == len(needed) and sorted(table.stage_ids.tolist()) == list(needed)


def check_stages(plan: PipelinePlan) -> Iterator[Finding]:
    """Does the plan have one program for each of its stages?"""
    counts = Counter(program.stage_id for program in plan.programs)
    if missing := gaps(counts, plan.stages):
        yield Finding(
            code=FindingCode.STRUCTURE,
            message=f"no program for {in_words('stage', missing)} (stages={plan.stages})",
        )
    for stage_id, count in counts.items():
        if count > 1:
            yield Finding(
                code=FindingCode.STRUCTURE,
                stage_id=stage_id,
                message=f"{count} programs for stage {stage_id}, needed 1",
            )


STAGES = PipelineQuestion("stages", holds=stages_hold, explain=check_stages)
