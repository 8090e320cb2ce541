"""So many findings of one question, and the number of the others: nobody reads thousands."""

from collections import Counter
from collections.abc import Iterable, Iterator

from schedcc.table.ranges import in_words, runs
from schemas import Finding

LISTED = 100
"""Findings of one question that a report lists."""
_NAMED = 8
"""Runs of stages, or of ranks, that the last finding names."""


def limited(findings: Iterable[Finding]) -> Iterator[Finding]:
    """The first findings of a question, and one that stands for all others."""
    others: Counter[tuple[str, int | None]] = Counter()
    first: Finding | None = None
    severe = False
    for number, finding in enumerate(findings):
        if number < LISTED:
            yield finding
            continue
        first = first or finding
        severe |= finding.severity == "error"
        by_rank = finding.rank is not None
        others[("rank", finding.rank) if by_rank else ("stage", finding.stage_id)] += 1
    if first is not None:
        yield Finding(
            code=first.code,
            severity="error" if severe else "warning",
            message=f"{others.total():,} more of these{_on([*others])}",
            stage_id=first.stage_id if len(others) == 1 and first.rank is None else None,
            rank=first.rank if len(others) == 1 else None,
            count=others.total(),
        )


def _on(culprits: list[tuple[str, int | None]]) -> str:
    named = [(noun, number) for noun, number in culprits if number is not None]
    if len(named) < 2:  # one is named by the finding itself
        return ""
    found = runs(number for _, number in named)
    more = ", ..." if len(found) > _NAMED else ""
    return f", on {in_words(named[0][0], found[:_NAMED])}{more}"
