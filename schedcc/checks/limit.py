"""So many findings of one question, and the number of the others: nobody reads thousands."""

from collections import Counter
from collections.abc import Iterable, Iterator

from schedcc.table.ranges import in_words, runs
from schemas import Finding

LISTED = 100
"""Findings of one question that a report lists."""
_NAMED = 8
"""Runs of stages that the last finding names."""


def limited(findings: Iterable[Finding]) -> Iterator[Finding]:
    """The first findings of a question, and one that stands for all others."""
    others: Counter[int | None] = Counter()
    first: Finding | None = None
    severe = False
    for number, finding in enumerate(findings):
        if number < LISTED:
            yield finding
            continue
        first = first or finding
        severe |= finding.severity == "error"
        others[finding.stage_id] += 1
    if first is not None:
        yield Finding(
            code=first.code,
            severity="error" if severe else "warning",
            message=f"{others.total():,} more of these{_on([s for s in others if s is not None])}",
            stage_id=first.stage_id if len(others) == 1 else None,
            count=others.total(),
        )


def _on(stage_ids: list[int]) -> str:
    if len(stage_ids) < 2:  # one stage is named by the finding itself
        return ""
    found = runs(stage_ids)
    return f", on {in_words('stage', found[:_NAMED])}{', ...' if len(found) > _NAMED else ''}"
