"""`channel`, for collectives: do their stages enter the same ones in the same order?"""

from collections import defaultdict
from collections.abc import Iterator

from schedcc.checks.question import PipelineQuestion
from schedcc.table.channels import collectives
from schedcc.table.table import PlanTable
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
    stage_ids = [program.stage_id for program in plan.programs]
    programs: defaultdict[int, list[int]] = defaultdict(list)
    for number, stage_id in enumerate(stage_ids):
        programs[stage_id].append(number)
    entered: defaultdict[range, defaultdict[int, list[HandOver]]]
    entered = defaultdict(lambda: defaultdict(list))
    for number, program in enumerate(plan.programs):
        for instruction in collectives(program.epilogue):
            entered[instruction.members(plan.stages)][number].append(instruction)
    for members, by_program in entered.items():  # in the order of their first collectives
        # A pair of stages, or all of them: whichever is fewer is gone through.
        few = not members[len(stage_ids) :]
        present = [n for stage_id in members for n in programs.get(stage_id, ())] if few else None
        if present is None:
            present = [n for n, stage_id in enumerate(stage_ids) if stage_id in members]
        yield from _check_group([(stage_ids[n], by_program.get(n, [])) for n in sorted(present)])


def _check_group(entered_by: list[tuple[int, list[HandOver]]]) -> Iterator[Finding]:
    rounds = max((len(own) for _, own in entered_by), default=0)
    there = entered_by
    for number in range(rounds):
        entered: dict[HandOver, list[int]] = {}
        for stage_id, own in there:
            if number < len(own):
                entered.setdefault(own[number], []).append(stage_id)
        majority = max(entered, key=lambda instruction: len(entered[instruction]))
        for stage_id, own in there:
            if number == len(own):
                message = f"epilogue: {majority} of the other stages waits for stage {stage_id}"
                more = rounds - number - 1
                rest = f", nor the {more} after it" if more else ""
                yield _finding(stage_id, f"{message}, which never enters it{rest}")
        there = [(stage_id, own) for stage_id, own in there if number < len(own)]
        for instruction, stage_ids in entered.items():
            if instruction != majority:
                for stage_id in stage_ids:
                    message = f"epilogue: collective {number + 1} is {instruction} here"
                    yield _finding(stage_id, f"{message} and {majority} elsewhere")


def _finding(stage_id: int, message: str) -> Finding:
    return Finding(code=FindingCode.CHANNEL, stage_id=stage_id, message=message)


COLLECTIVES = PipelineQuestion("collectives", holds=collectives_hold, explain=check_collectives)
