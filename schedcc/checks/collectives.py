"""`channel`, for collectives: do all stages enter the same ones in the same order?"""

from collections.abc import Iterator

from schedcc.channels import collectives
from schemas import (
    Finding,
    FindingCode,
    PipelinePlan,
    ResultInstruction,
)


def check_collectives(plan: PipelinePlan) -> Iterator[Finding]:
    """Is the k-th collective of every stage the k-th collective of all stages?"""
    rounds = max((len(collectives(program.epilogue)) for program in plan.programs), default=0)
    for number in range(rounds):
        entered: dict[ResultInstruction, list[int]] = {}
        absent: list[int] = []
        for program in plan.programs:
            own = collectives(program.epilogue)
            if number < len(own):
                entered.setdefault(own[number], []).append(program.stage_id)
            else:
                absent.append(program.stage_id)
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
