"""A plan file as a table, without making its instructions."""

from pathlib import Path
from typing import Any

from schedcc.io.plan_columns import ProgramColumns, program_columns, table_of
from schedcc.io.plan_files import load_plan, validated
from schedcc.table.materialise import collection_paused
from schedcc.table.table import PlanTable
from schemas import PipelinePlan
from schemas.first_format import FIRST_FORMATS


def read_plan_table(path: Path) -> PlanTable:
    """The table of a plan file of either format, or of a CSV file of torch's, unchecked.

    Of several programs for one rank, the last one counts.

    Raises:
        PlanFileError: as `schedcc.io.plan_files.read_plan`.
    """
    with collection_paused():
        return _table(load_plan(path), path)


def _table(data: dict[str, Any] | PipelinePlan, path: Path) -> PlanTable:
    if isinstance(data, PipelinePlan):
        return table_of(data, [ProgramColumns.of(program) for program in data.programs])
    programs, bare = _columns(data)
    header = validated(data if programs is None else bare, path)
    if programs is None:
        own = header.programs if isinstance(header, PipelinePlan) else (header.program,)
        programs = [ProgramColumns.of(program) for program in own]
    return table_of(header, programs)


def _columns(data: dict[str, Any]) -> tuple[list[ProgramColumns] | None, dict[str, Any]]:
    """The columns of all programs, if these are plainly right, and the plan without them."""
    nothing: dict[str, Any] = {"steps": [], "epilogue": []}
    first_format = data["format"] in FIRST_FORMATS
    if "programs" not in data:
        columns = program_columns(data, first_format=first_format)
        return None if columns is None else [columns], {**data, **nothing}
    programs = data["programs"]
    if not isinstance(programs, list):
        return None, data
    found = [program_columns(program, first_format=first_format) for program in programs]
    known = [columns for columns in found if columns is not None]
    if len(known) < len(found):
        return None, data
    return known, {**data, "programs": [{**program, **nothing} for program in programs]}
