"""`structure`, of an epilogue: does it work on results that are there, and hand them out once?"""

from collections import defaultdict
from collections.abc import Iterator

from schedcc.checks.question import finding
from schemas import Finding, FindingCode, PlanHeader, RankProgram, ResultInstruction


def check_order_of_results(header: PlanHeader, program: RankProgram) -> Iterator[Finding]:
    """Does every instruction find the result that it works on, and is none handed out twice?"""
    last = program.rank == header.rank_of(header.stages - 1)
    seen: set[ResultInstruction] = set()
    ops: set[str] = set()
    handed_out: defaultdict[str, dict[str, ResultInstruction]] = defaultdict(dict)
    for instruction in program.epilogue:
        assert isinstance(instruction, ResultInstruction)
        complaints = []
        if instruction.op in ops:
            complaints.append("found a second time in the epilogue, needed once")
        if instruction.gives is not None:
            complaints += [
                f"{earlier} has handed out the {instruction.gives} already"
                for op, earlier in handed_out[instruction.gives].items()
                if op != instruction.op
            ]
            handed_out[instruction.gives].setdefault(instruction.op, instruction)
        if last and instruction.needs and seen.isdisjoint(instruction.needs):
            needed = " or ".join(map(str, instruction.needs))
            complaints.append(f"no {needed} before it, on whose result it works")
        complaints += [
            f"found after {op}, which hands out what it changes"
            for op in instruction.precedes
            if op in ops
        ]
        for complaint in complaints:
            message = f"epilogue: {instruction}: {complaint}"
            yield finding(FindingCode.STRUCTURE, header, program.rank, message)
        seen.add(instruction)
        ops.add(instruction.op)
