"""The handshake: what all stages make sure of before the first transfer of a run.

Stages that disagree would hang, or worse, exchange the wrong messages. So each proposes what it is
about to do, and a disagreement is the same error on every stage of every data-parallel replica.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from runtime.data.fingerprint import Digests, require_same_data
from runtime.data.stream import Window
from runtime.distributed.agreement import require_same_by_name
from runtime.failure.errors import AgreementError
from runtime.modules.division import Division
from runtime.transport.protocol import Transport
from schedcc import Outcome


@dataclass(frozen=True)
class Proposal:
    """What one stage brings to a run."""

    outcome: Outcome
    asked: int | None
    """The number of micro-batches that the caller asked for; `None`: all that there are."""
    found: int | None
    """The micro-batches that the stage has fetched so far; `None` if it reads no data."""
    ended: bool = True
    """Whether that is all of its data, or all that was asked for."""
    window: Window | None = None
    """Those of the first stage."""
    digests: tuple[Digests, ...] = ()
    """Of what was fetched, from the stages that compare it."""
    check_finite: bool = False
    """Whether the stages compare notes after the run as well."""
    endless: bool = False
    """Whether the rank can go on for as long as there is data, in one run."""
    weights: Any = None
    """What the stage says of its weights, where an evaluation begins."""
    before: int = 0
    """Micro-batches that were evaluated before this run."""


@dataclass(frozen=True)
class Handshake:
    """What all stages know before a run."""

    window: Window
    """The first micro-batches of the run, in this replica."""
    final: bool
    """Whether no replica has any others after this run."""
    endless: bool
    """Whether the run goes on for as long as there is data."""
    everywhere: int
    """Micro-batches that have been fetched for this run, in all replicas."""
    weights: list[list[Any]]
    """What all stages say of their weights, by replica."""


def handshake(transport: Transport, proposal: Proposal, division: Division) -> Handshake:
    """Compare the proposals of all stages of all replicas.

    Args:
        transport: Connection to them.
        proposal: What this rank brings.
        division: Says which rank holds the first stage, and what ranks are called.

    Raises:
        AgreementError: the stages ask for or have different things.
        DifferentDataError: those of this replica read different micro-batches.
    """
    pipeline: list[Proposal] = transport.gather_objects(proposal)
    brief = [replace(p, window=None, digests=()) for p in pipeline]
    replicas: list[list[Proposal]] = transport.gather_from_replicas(brief)
    by_name = {
        _name(division, rank, replica, len(replicas)): proposed
        for replica, proposals in enumerate(replicas)
        for rank, proposed in enumerate(proposals)
    }
    require_same_by_name("wanted outcome", {name: p.outcome for name, p in by_name.items()})
    require_same_by_name("check_finite", {name: p.check_finite for name, p in by_name.items()})
    require_same_by_name("num_micro_batches", {name: p.asked or 0 for name, p in by_name.items()})
    for name, p in by_name.items():
        if p.asked is not None and p.found is not None and p.ended and p.found < p.asked:
            raise AgreementError(
                f"the data of {name} ended after {p.found} micro-batches, needed {p.asked}"
            )
    for replica, proposals in enumerate(replicas):
        names = [_name(division, rank, replica, len(replicas)) for rank in range(len(proposals))]
        _require_same_number(dict(zip(names, proposals, strict=True)))
    require_same_data([p.digests for p in pipeline], proposal.before, division.unit)
    first = division.placement[0]
    window = pipeline[first].window
    assert window is not None
    endless = all(p.endless for p in by_name.values())
    firsts = [proposals[first] for proposals in replicas]
    return Handshake(
        window=window,
        final=endless or all(first.ended for first in firsts),
        endless=endless,
        everywhere=sum(first.found or 0 for first in firsts),
        weights=[[p.weights for p in proposals] for proposals in replicas],
    )


def _require_same_number(stages: Mapping[str, Proposal]) -> None:
    """Refuse data that has ended on one stage where another one has more already."""
    readers = [
        (name, p.before + p.found, p.ended) for name, p in stages.items() if p.found is not None
    ]
    for name, found, ended in readers[1:]:
        first, expected, all_there = readers[0]
        if (all_there and found > expected) or (ended and found < expected):
            raise AgreementError(
                f"number of micro-batches differs: {expected}{'' if all_there else ' or more'} on "
                f"{first}, {found}{'' if ended else ' or more'} on {name}"
            )


def _name(division: Division, rank: int, replica: int, replicas: int) -> str:
    return division.name(rank) + (f" of replica {replica}" if replicas > 1 else "")
