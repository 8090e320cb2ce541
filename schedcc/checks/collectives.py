"""`channel`, for collectives: do their stages enter the same ones in the same order?"""

from collections.abc import Iterator

from schedcc.channels import collectives
from schedcc.checks.question import PipelineQuestion
from schedcc.table import PlanTable
from schemas import Finding, FindingCode, HandOver, PipelinePlan


def collectives_hold(table: PlanTable) -> bool:
    """Do all stages enter their collectives in one order, which is common to all of them?

    So they neither miss each other nor wait in a circle. Of those with members outside of the
    table, only what is here is compared.
    """
    entered = [collectives(epilogue) for epilogue in table.epilogues]
    order = max(entered, key=len, default=[])
    return all(
        own == [i for i in order if stage_id in i.members(table.stages)]
        for stage_id, own in zip(table.stage_ids.tolist(), entered, strict=True)
    )


def check_collectives(plan: PipelinePlan) -> Iterator[Finding]:
    """Is the k-th collective of every stage the k-th of all stages that take part in it?"""
    entered = [(program.stage_id, collectives(program.epilogue)) for program in plan.programs]
    groups = {i.members(plan.stages): None for _, own in entered for i in own}  # in order
    for members in groups:
        yield from _check_group(
            [
                (stage_id, [i for i in own if i.members(plan.stages) == members])
                for stage_id, own in entered
                if stage_id in members
            ]
        )


def _check_group(entered_by: list[tuple[int, list[HandOver]]]) -> Iterator[Finding]:
    rounds = max((len(own) for _, own in entered_by), default=0)
    for number in range(rounds):
        entered: dict[HandOver, list[int]] = {}
        absent: list[int] = []
        for stage_id, own in entered_by:
            if number < len(own):
                entered.setdefault(own[number], []).append(stage_id)
            else:
                absent.append(stage_id)
        majority = max(entered, key=lambda instruction: len(entered[instruction]))
        for stage_id in absent:
            message = f"epilogue: {majority} of the other stages waits for stage {stage_id}"
            yield _finding(stage_id, f"{message}, which never enters it")
        for instruction, stage_ids in entered.items():
            if instruction != majority:
                for stage_id in stage_ids:
                    message = f"epilogue: collective {number + 1} is {instruction} here"
                    yield _finding(stage_id, f"{message} and {majority} elsewhere")


def _finding(stage_id: int, message: str) -> Finding:
    return Finding(code=FindingCode.CHANNEL, stage_id=stage_id, message=message)


COLLECTIVES = PipelineQuestion("collectives", holds=collectives_hold, explain=check_collectives)
