"""Plans to test with: written by hand, in the notation that `schedcc show` draws.

A cell such as `L1 S0 F1` loads 1, sends 0 and forwards 1; `|` separates steps. The other symbols
are `R` (receive) and, for split transfers, `r<` and `r.` (post and wait of a receive), `s>` and
`s.` (of a send); `{` and `}` are the brackets of a group. A micro-batch lives in buffer `m % 2` and
travels from a stage to the next, unless the instruction says otherwise: `S0@1:3` sends micro-batch
0 from buffer 1 to stage 3. Where a rank has several stages, the stage stands in front: `2F0`
forwards micro-batch 0 on stage 2, and `2C0` hands it over from stage 1, of whose buffers the
peer's is named last: `2C0@1:1@0`.
"""

import re
from collections.abc import Iterable
from typing import cast

from schedcc.io.picture import cell
from schemas import (
    BufferInstruction,
    CopyActivation,
    EpilogueInstruction,
    ForwardPass,
    GroupEnd,
    GroupStart,
    LoadMicroBatch,
    PipelinePlan,
    PostRecvActivation,
    PostSendActivation,
    RankProgram,
    RecvActivation,
    SendActivation,
    Step,
    StepInstruction,
    WaitRecvActivation,
    WaitSendActivation,
)

SYMBOLS: dict[str, type[BufferInstruction]] = {
    "L": LoadMicroBatch,
    "F": ForwardPass,
    "C": CopyActivation,
    "R": RecvActivation,
    "S": SendActivation,
    "r<": PostRecvActivation,
    "r.": WaitRecvActivation,
    "s>": PostSendActivation,
    "s.": WaitSendActivation,
}
_INSTRUCTION = re.compile(
    r"(\d+)?(L|F|C|R|S|r<|r\.|s>|s\.)(-?\d+)(?:@(-?\d+))?(?::(-?\d+)(?:@(-?\d+))?)?"
)


def instruction(text: str, stage_id: int) -> StepInstruction:
    """One instruction in the notation, of a rank whose stage is `stage_id`."""
    if text in "{}":
        return GroupStart() if text == "{" else GroupEnd()
    matched = _INSTRUCTION.fullmatch(text)
    assert matched, text
    stage, symbol, micro_batch, buffer, peer, peer_buffer = matched.groups()
    stage_id = stage_id if stage is None else int(stage)
    fields = {"stage": stage_id, "micro_batch": int(micro_batch)}
    fields["buffer"] = int(micro_batch) % 2 if buffer is None else int(buffer)
    if symbol not in "LF":
        neighbour = stage_id - 1 if symbol.upper()[0] in "RC" else stage_id + 1
        fields["peer"] = neighbour if peer is None else int(peer)
    if symbol == "C":
        fields["peer_buffer"] = fields["buffer"] if peer_buffer is None else int(peer_buffer)
    return cast(StepInstruction, SYMBOLS[symbol](**fields))


def steps(text: str, stage_id: int) -> tuple[Step, ...]:
    """The steps of a program in the notation."""
    cells = text.split("|")
    return tuple(tuple(instruction(word, stage_id) for word in cell.split()) for cell in cells)


def program(stage_id: int, text: str, epilogue: Iterable[EpilogueInstruction] = ()) -> RankProgram:
    """The program of a rank with one stage, of the same number."""
    return RankProgram(rank=stage_id, steps=steps(text, stage_id), epilogue=tuple(epilogue))


def pipeline(
    *texts: str,
    micro_batches: int = 1,
    num_buffers: int = 2,
    placement: tuple[int, ...] | None = None,
) -> PipelinePlan:
    """The plan whose rank `r` runs the `r`-th text, without an epilogue.

    Args:
        texts: The programs.
        micro_batches: M.
        num_buffers: Buffers of a stage.
        placement: The rank of each stage; default: one stage on each rank.
    """
    placement = tuple(range(len(texts))) if placement is None else placement
    return PipelinePlan(
        micro_batches=micro_batches,
        stages=len(placement),
        ranks=len(texts),
        placement=placement,
        num_buffers=num_buffers,
        programs=tuple(program(rank, text) for rank, text in enumerate(texts)),
    )


def words(step: Step) -> str:
    """A step in the notation, with operations and micro-batches only."""
    return cell(step).plain


def with_program(plan: PipelinePlan, changed: RankProgram) -> PipelinePlan:
    """`plan` with another program for one of its ranks."""
    programs = (changed if p.rank == changed.rank else p for p in plan.programs)
    return plan.model_copy(update={"programs": tuple(programs)})
