"""Split every blocking transfer into its post and its wait."""

from schemas import (
    PostRecvActivation,
    PostSendActivation,
    RecvActivation,
    SendActivation,
    StageProgram,
    Step,
    StepInstruction,
    WaitRecvActivation,
    WaitSendActivation,
)


def split_transfers(program: StageProgram, _: int) -> StageProgram:
    """Replace a transfer by its post and, at once, its wait, which means the same.

    >>> from schedcc import compile_stage
    >>> from schedcc.io.picture import cell
    >>> program = compile_stage(2, 3, 1).program
    >>> [cell(step).plain for step in program.steps]
    ['', 'R0 F0', 'R1 S0 F1', 'S1']
    >>> [cell(step).plain for step in split_transfers(program, 3).steps]
    ['', 'r<0 r.0 F0', 'r<1 r.1 s>0 s.0 F1', 's>1 s.1']
    """
    steps = tuple(_split_step(step) for step in program.steps)
    return program.model_copy(update={"steps": steps})


def _split_step(step: Step) -> Step:
    return tuple(part for instruction in step for part in _parts(instruction))


def _parts(instruction: StepInstruction) -> tuple[StepInstruction, ...]:
    match instruction:
        case RecvActivation(micro_batch=m, buffer=b, peer=p):
            return (
                PostRecvActivation(micro_batch=m, buffer=b, peer=p),
                WaitRecvActivation(micro_batch=m, buffer=b, peer=p),
            )
        case SendActivation(micro_batch=m, buffer=b, peer=p):
            return (
                PostSendActivation(micro_batch=m, buffer=b, peer=p),
                WaitSendActivation(micro_batch=m, buffer=b, peer=p),
            )
        case _:
            return (instruction,)
