"""A plan as a picture: one row for each rank, one column for each step."""

from typing import NamedTuple

from rich import box
from rich.table import Table
from rich.text import Text

from schedcc.io.plain_text import visible
from schemas import BufferInstruction, PipelinePlan, RankProgram, StagePlan, Step

SYMBOLS = {
    "LoadMicroBatch": ("L", "cyan"),
    "ForwardPass": ("F", "bold green"),
    "CopyActivation": ("C", "blue"),
    "RecvActivation": ("R", "yellow"),
    "SendActivation": ("S", "magenta"),
    "PostRecvActivation": ("r<", "yellow"),
    "WaitRecvActivation": ("r.", "yellow"),
    "PostSendActivation": ("s>", "magenta"),
    "WaitSendActivation": ("s.", "magenta"),
    "GroupStart": ("{", "dim"),
    "GroupEnd": ("}", "dim"),
}
"""What stands for each instruction in a cell, and its style."""


class Window(NamedTuple):
    """The steps to draw, from `first` up to but not including `stop`."""

    first: int
    stop: int

    @classmethod
    def parse(cls, text: str, steps: int) -> "Window":
        """Read `A:B` (either may be left out), with the meaning of a Python slice.

        Raises:
            ValueError: the text is no such range, or none of the steps is in it.
        """
        first, colon, stop = text.partition(":")
        try:
            if not colon:
                raise ValueError
            bounds = slice(int(first) if first else None, int(stop) if stop else None)
        except ValueError:
            raise ValueError(f"--steps is {text!r}, needed A:B, such as 0:8 or 10:") from None
        window = cls(*bounds.indices(steps)[:2])
        if steps and window.stop <= window.first:
            raise ValueError(f"--steps is {text!r}, needed a range within 0:{steps} that has steps")
        return window


def fitting(plan: PipelinePlan | StagePlan, width: int) -> Window:
    """As many of the first steps as can be drawn whole in `width` characters."""
    ranks, staged = [len(str(program.rank)) for program in _programs(plan)], plan.unit == "rank"
    used, stop = max([len(plan.unit), *ranks]) + 2, 0  # a border on its left, a space on its right
    for step in range(step_count(plan)):
        drawn = (program.steps[step] for program in _programs(plan) if _has(program, step))
        cells = [cell(instructions, staged=staged) for instructions in drawn]
        used += max(len(str(step)), *(text.cell_len for text in cells)) + 3
        if used > width:
            break
        stop += 1
    return Window(0, stop)


def draw(plan: PipelinePlan | StagePlan, window: Window) -> Table:
    """Draw the steps in `window` of every rank.

    A cell shows the instructions of one step in their order, each as its symbol and its
    micro-batch: `L3 S2 F3` loads 3, sends 2 and forwards 3. Where ranks hold other than one stage
    each, the stage stands in front, as in torch's files: `4F3` forwards 3 on stage 4.
    """
    table = Table(box=box.ROUNDED, pad_edge=False)
    table.add_column(plan.unit, justify="right", style="bold", no_wrap=True)
    for step in range(*window):
        table.add_column(str(step), no_wrap=True)
    for program in _programs(plan):
        shown = program.steps[window.first : window.stop]
        cells = [cell(step, staged=plan.unit == "rank") for step in shown]
        table.add_row(str(program.rank), *cells)
    return table


def title(plan: PipelinePlan | StagePlan, window: Window) -> str:
    """What the plan is for, and which of its steps are drawn."""
    total = step_count(plan)
    drawn = f"{window.first} to {window.stop - 1}" if window.stop > window.first else "none"
    part = "" if window == (0, total) else f" (drawn: {drawn})"
    ranks = "" if plan.is_one_to_one else f" on R = {plan.ranks} ranks"
    buffers = f"{plan.num_buffers} buffer{'s' if plan.num_buffers > 1 else ''}"
    return (
        f"{visible(plan.schedule)} schedule: M = {plan.micro_batches} micro-batches, "
        f"S = {plan.stages} stages{ranks}, {buffers}, {total} steps{part}"
    )


def step_count(plan: PipelinePlan | StagePlan) -> int:
    """The number of steps of the longest program."""
    return max((len(program.steps) for program in _programs(plan)), default=0)


def epilogue_lines(plan: PipelinePlan | StagePlan) -> list[str]:
    """The epilogue of each rank that has one, in words."""
    return [
        f"epilogue of {plan.unit} {program.rank}: {', '.join(map(str, program.epilogue))}"
        for program in _programs(plan)
        if program.epilogue
    ]


def legend(plan: PipelinePlan | StagePlan, width: int) -> Text:
    """The meaning of the symbols that the plan uses, in lines of `width` characters."""
    used = {i.op for program in _programs(plan) for step in program.steps for i in step}
    text, column = Text(), 0
    for op, (symbol, style) in SYMBOLS.items():
        if op in used:
            length = len(f"{symbol} {op}")
            if column and column + length > width:
                text.append("\n")
                column = 0
            text.append(symbol, style).append(f" {op}   ")
            column += length + len("   ")
    return text


def _programs(plan: PipelinePlan | StagePlan) -> tuple[RankProgram, ...]:
    return (plan.program,) if isinstance(plan, StagePlan) else plan.programs


def _has(program: RankProgram, step: int) -> bool:
    return step < len(program.steps)


def cell(step: Step, *, staged: bool = False) -> Text:
    """The instructions of one step: each as its symbol and its micro-batch.

    Args:
        step: The step.
        staged: Whether each is to show its stage.
    """
    text = Text()
    for number, instruction in enumerate(step):
        symbol, style = SYMBOLS[instruction.op]
        if isinstance(instruction, BufferInstruction):
            stage = str(instruction.stage) if staged else ""
            symbol = f"{stage}{symbol}{instruction.micro_batch}"
        text.append(" " if number else "").append(symbol, style)
    return text
