"""`structure`, of an epilogue: does it work on results that are there, and hand them out once?"""

from collections.abc import Iterator

from schemas import Finding, FindingCode, PlanHeader, ResultInstruction, StageProgram


def check_order_of_results(header: PlanHeader, program: StageProgram) -> Iterator[Finding]:
    """Does every instruction find the result that it works on, and is none handed out twice?"""
    last = program.stage_id == header.stages - 1
    seen: list[ResultInstruction] = []
    for instruction in program.epilogue:
        assert isinstance(instruction, ResultInstruction)
        ops = [earlier.op for earlier in seen]
        complaints = []
        if instruction.op in ops:
            complaints.append("found a second time in the epilogue, needed once")
        complaints += [
            f"{earlier} has handed out the {instruction.gives} already"
            for earlier in seen
            if earlier.gives is not None
            and earlier.gives == instruction.gives
            and earlier.op != instruction.op
        ]
        if last and instruction.needs and not any(need in seen for need in instruction.needs):
            needed = " or ".join(map(str, instruction.needs))
            complaints.append(f"no {needed} before it, on whose result it works")
        complaints += [
            f"found after {op}, which hands out what it changes"
            for op in instruction.precedes
            if op in ops
        ]
        for complaint in complaints:
            yield Finding(
                code=FindingCode.STRUCTURE,
                stage_id=program.stage_id,
                message=f"epilogue: {instruction}: {complaint}",
            )
        seen.append(instruction)
