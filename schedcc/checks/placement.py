"""`structure`, of the header: is every stage on a rank, and has every rank a stage?"""

from collections.abc import Iterator

import numpy as np

from schedcc.checks.question import HeaderQuestion
from schedcc.table.ranges import gaps, in_words, needed
from schedcc.table.table import PlanTable
from schemas import Finding, FindingCode, PlanHeader


def placement_holds(table: PlanTable) -> bool:
    """Does the placement name one rank for each stage, and each rank at least once?"""
    placement = table.placement
    if len(placement) == 0:
        return table.ranks == table.stages
    return (
        len(placement) == table.stages
        and int(placement.min()) == 0
        and int(placement.max()) == table.ranks - 1
        and len(np.unique(placement)) == table.ranks
    )


def check_placement(header: PlanHeader) -> Iterator[Finding]:
    """Does the placement name one rank for each stage, and each rank at least once?"""
    placement = header.placement
    if not placement and header.is_one_to_one:
        return
    if len(placement) != header.stages:
        found = f"placement lists the ranks of {len(placement)} stages"
        yield _finding(f"{found}, needed those of {header.stages}")
    for stage_id, rank in enumerate(placement):
        if not 0 <= rank < header.ranks:
            found = f"placement puts stage {stage_id} on rank {rank}"
            yield _finding(f"{found}, {needed(header.ranks)}")
    if empty := gaps(placement, header.ranks):
        yield _finding(
            f"placement puts no stage on {in_words('rank', empty)} (ranks={header.ranks})"
        )


def _finding(message: str) -> Finding:
    return Finding(code=FindingCode.STRUCTURE, message=message)


PLACEMENT = HeaderQuestion("placement", holds=placement_holds, explain=check_placement)
