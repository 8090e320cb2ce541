"""`channel`, for collectives: do their ranks enter the same ones in the same order?"""

from collections import defaultdict
from collections.abc import Iterator

from schedcc.checks.question import PipelineQuestion, finding
from schedcc.table.channels import collectives
from schedcc.table.table import PlanTable
from schemas import Finding, FindingCode, HandOver, PipelinePlan


def collectives_hold(table: PlanTable) -> bool:
    """Do all ranks enter their collectives in one order, which is common to all of them?

    So they neither miss each other nor wait in a circle.
    """
    entered = [collectives(epilogue) for epilogue in table.epilogues]
    order = max(entered, key=len, default=[])
    return all(
        own == [i for i in order if rank in i.members(table.ranks, table.rank_of_one)]
        for rank, own in zip(table.rank_ids.tolist(), entered, strict=True)
    )


def check_collectives(plan: PipelinePlan) -> Iterator[Finding]:
    """Is the k-th collective of every rank the k-th of all ranks that take part in it?"""
    ranks = [program.rank for program in plan.programs]
    programs: defaultdict[int, list[int]] = defaultdict(list)
    for number, rank in enumerate(ranks):
        programs[rank].append(number)
    entered: defaultdict[range, defaultdict[int, list[HandOver]]]
    entered = defaultdict(lambda: defaultdict(list))
    for number, program in enumerate(plan.programs):
        for instruction in collectives(program.epilogue):
            entered[instruction.members(plan.ranks, plan.rank_of)][number].append(instruction)
    for members, by_program in entered.items():  # in the order of their first collectives
        # A pair of ranks, or all of them: whichever is fewer is gone through.
        few = not members[len(ranks) :]
        present = [n for rank in members for n in programs.get(rank, ())] if few else None
        if present is None:
            present = [n for n, rank in enumerate(ranks) if rank in members]
        yield from _check_group(plan, [(ranks[n], by_program.get(n, [])) for n in sorted(present)])


def _check_group(
    plan: PipelinePlan, entered_by: list[tuple[int, list[HandOver]]]
) -> Iterator[Finding]:
    rounds = max((len(own) for _, own in entered_by), default=0)
    there, unit = entered_by, plan.unit
    for number in range(rounds):
        entered: dict[HandOver, list[int]] = {}
        for rank, own in there:
            if number < len(own):
                entered.setdefault(own[number], []).append(rank)
        majority = max(entered, key=lambda instruction: len(entered[instruction]))
        for rank, own in there:
            if number == len(own):
                message = f"epilogue: {majority} of the other {unit}s waits for {unit} {rank}"
                more = rounds - number - 1
                rest = f", nor the {more} after it" if more else ""
                yield _finding(plan, rank, f"{message}, which never enters it{rest}")
        there = [(rank, own) for rank, own in there if number < len(own)]
        for instruction, ranks in entered.items():
            if instruction != majority:
                for rank in ranks:
                    message = f"epilogue: collective {number + 1} is {instruction} here"
                    yield _finding(plan, rank, f"{message} and {majority} elsewhere")


def _finding(plan: PipelinePlan, rank: int, message: str) -> Finding:
    return finding(FindingCode.CHANNEL, plan, rank, message)


COLLECTIVES = PipelineQuestion("collectives", holds=collectives_hold, explain=check_collectives)
