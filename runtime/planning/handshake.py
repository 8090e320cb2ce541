"""Agreement: what all stages make sure of before the first transfer of a run.

Stages that disagree would hang, or worse, exchange the wrong messages. So they compare notes first,
and a disagreement is the same error on every stage of every data-parallel replica.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from runtime.data.fingerprint import Digests, require_same_data
from runtime.data.stream import Window
from runtime.failure.errors import AgreementError
from runtime.transport.protocol import Transport
from schedcc import Outcome


@dataclass(frozen=True)
class Announcement:
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
    weights: Any = None
    """What the stage says of its weights, where an evaluation begins."""
    before: int = 0
    """Micro-batches that were evaluated before this run."""


@dataclass(frozen=True)
class Agreement:
    """What all stages know before a run."""

    window: Window
    """The first micro-batches of the run, in this replica."""
    final: bool
    """Whether no replica has any others."""
    everywhere: int
    """Micro-batches that have been fetched for this run, in all replicas."""
    weights: list[list[Any]]
    """What all stages say of their weights, by replica."""


def agree(transport: Transport, mine: Announcement) -> Agreement:
    """Compare the announcements of all stages of all replicas.

    Args:
        transport: Connection to them.
        mine: What this stage brings.

    Raises:
        AgreementError: the stages ask for or have different things.
        DifferentDataError: those of this replica read different micro-batches.
    """
    pipeline: list[Announcement] = transport.gather_objects(mine)
    brief = [replace(a, window=None, digests=()) for a in pipeline]
    replicas: list[list[Announcement]] = transport.gather_from_replicas(brief)
    everyone = {
        _name(stage_id, replica, len(replicas)): announcement
        for replica, announcements in enumerate(replicas)
        for stage_id, announcement in enumerate(announcements)
    }
    _require_same("wanted outcome", {name: a.outcome for name, a in everyone.items()})
    _require_same("check_finite", {name: a.check_finite for name, a in everyone.items()})
    _require_same("num_micro_batches", {name: a.asked or 0 for name, a in everyone.items()})
    for name, a in everyone.items():
        if a.asked is not None and a.found is not None and a.ended and a.found < a.asked:
            raise AgreementError(
                f"the data of {name} ended after {a.found} micro-batches, needed {a.asked}"
            )
    for replica, announcements in enumerate(replicas):
        names = [_name(stage_id, replica, len(replicas)) for stage_id in range(len(announcements))]
        _require_same_number(dict(zip(names, announcements, strict=True)))
    require_same_data([announcement.digests for announcement in pipeline], mine.before)
    window = pipeline[0].window
    assert window is not None
    firsts = [announcements[0] for announcements in replicas]
    return Agreement(
        window=window,
        final=all(first.ended for first in firsts),
        everywhere=sum(first.found or 0 for first in firsts),
        weights=[[a.weights for a in announcements] for announcements in replicas],
    )


def _require_same_number(stages: Mapping[str, Announcement]) -> None:
    """Refuse data that has ended on one stage where another one has more already."""
    readers = [
        (name, a.before + a.found, a.ended) for name, a in stages.items() if a.found is not None
    ]
    for name, found, ended in readers[1:]:
        first, expected, all_there = readers[0]
        if (all_there and found > expected) or (ended and found < expected):
            raise AgreementError(
                f"number of micro-batches differs: {expected}{'' if all_there else ' or more'} on "
                f"{first}, {found}{'' if ended else ' or more'} on {name}"
            )


def require_same(what: str, values: Sequence[object]) -> None:
    """Compare what the stages say of themselves, by stage id; `None` says nothing.

    Raises:
        AgreementError: two stages differ; the message names them.
    """
    _require_same(what, {f"stage {stage}": value for stage, value in enumerate(values)})


def _require_same(what: str, values: Mapping[str, object]) -> None:
    said = [(name, value) for name, value in values.items() if value is not None]
    for name, value in said[1:]:
        first, expected = said[0]
        if value != expected:
            raise AgreementError(f"{what} differs: {expected!r} on {first}, {value!r} on {name}")


def _name(stage_id: int, replica: int, replicas: int) -> str:
    return f"stage {stage_id}" + (f" of replica {replica}" if replicas > 1 else "")
