"""Plans of the first format (`schedcc.plan/1`, `schedcc.stage-plan/1`), upgraded for ever.

They had a program for each stage, under `stage_id`, and no `ranks`, `placement` or `stage`: every
rank held one stage, which was that of all its instructions.
"""

from typing import Any

from pydantic_core import PydanticCustomError

MOST_IMPLIED = 2**20
"""Stages whose placement is written out where a plan leaves it out."""

FIRST_FORMATS = ("schedcc.plan/1", "schedcc.stage-plan/1")

_NEW_KEYS = ("ranks", "placement", "rank")


def upgraded_plan(data: object) -> object:
    """The content of a plan file in today's format, if it is of the first."""
    if not isinstance(data, dict) or data.get("format") != "schedcc.plan/1":
        return data
    _refuse(data, "a plan", _NEW_KEYS)
    programs = data.get("programs")
    if isinstance(programs, list | tuple):
        programs = [_upgraded_program(program) for program in programs]
    return {**data, "format": "schedcc.plan/2", "programs": programs}


def upgraded_stage_plan(data: object) -> object:
    """The content of a file with one stage's plan in today's format, if it is of the first."""
    if not isinstance(data, dict) or data.get("format") != "schedcc.stage-plan/1":
        return data
    _refuse(data, "a plan", _NEW_KEYS)
    return {**_upgraded_program(data), "format": "schedcc.stage-plan/2"}


def _upgraded_program(program: Any) -> Any:
    if not isinstance(program, dict):
        return program
    _refuse(program, "a program", ("rank",))
    stage_id = program.get("stage_id")  # without it, its rank is missing, too
    upgraded = {"rank" if key == "stage_id" else key: program[key] for key in program}
    steps = program.get("steps")
    if isinstance(steps, list | tuple):
        upgraded["steps"] = [
            [upgraded_instruction(i, stage_id) for i in step]
            if isinstance(step, list | tuple)
            else step
            for step in steps
        ]
    return upgraded


def upgraded_instruction(instruction: Any, stage_id: Any) -> Any:
    """An instruction of the first format, which is of this stage, in today's."""
    if not isinstance(instruction, dict) or "micro_batch" not in instruction:
        return instruction
    _refuse(instruction, "an instruction", ("stage",))
    return {**instruction, "stage": stage_id}


def _refuse(data: dict[str, Any], noun: str, keys: tuple[str, ...]) -> None:
    """What came later means nothing in the first format, and would change what runs."""
    for key in keys:
        if key in data:
            message = "'{key}' is not a key of {noun} of the first format"
            raise PydanticCustomError("first_format", message, {"key": key, "noun": noun})
