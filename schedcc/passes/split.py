"""Split every blocking transfer into its post and its wait."""

from schemas import (
    PlanHeader,
    PostRecvActivation,
    PostSendActivation,
    RankProgram,
    RecvActivation,
    SendActivation,
    Step,
    StepInstruction,
    Transfer,
    WaitRecvActivation,
    WaitSendActivation,
)


def split_transfers(program: RankProgram, _: PlanHeader) -> RankProgram:
    """Replace a transfer by its post and, at once, its wait, which means the same.

    >>> from schedcc import compile_stage
    >>> from schedcc.io.picture import cell
    >>> plan = compile_stage(2, 3, 1)
    >>> [cell(step).plain for step in plan.steps]
    ['', 'R0 F0', 'R1 S0 F1', 'S1']
    >>> [cell(step).plain for step in split_transfers(plan.program, plan).steps]
    ['', 'r<0 r.0 F0', 'r<1 r.1 s>0 s.0 F1', 's>1 s.1']
    """
    steps = tuple(_split_step(step) for step in program.steps)
    return program.model_copy(update={"steps": steps})


def _split_step(step: Step) -> Step:
    return tuple(part for instruction in step for part in _parts(instruction))


def _parts(instruction: StepInstruction) -> tuple[StepInstruction, ...]:
    if not isinstance(instruction, RecvActivation | SendActivation):
        return (instruction,)
    fields = instruction.model_dump(exclude={"op"})
    return tuple(part(**fields) for part in _HALVES[type(instruction)])


_HALVES: dict[type[RecvActivation | SendActivation], tuple[type[Transfer], type[Transfer]]] = {
    RecvActivation: (PostRecvActivation, WaitRecvActivation),
    SendActivation: (PostSendActivation, WaitSendActivation),
}
