"""Agreement: what all stages make sure of before the first transfer of a run.

Stages that disagree would hang, or worse, exchange the wrong messages. So they compare notes first,
and a disagreement is the same error on every stage of every data-parallel replica.
"""

from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from typing import Any

from runtime.activation import Signature
from runtime.failure.errors import AgreedError
from runtime.failure.fingerprint import Digests, require_same_data
from runtime.transport.protocol import Transport
from schedcc import Outcome


class AgreementError(AgreedError, ValueError):
    """The stages were called with things that do not fit together."""


@dataclass(frozen=True)
class Announcement:
    """What one stage brings to a run."""

    outcome: Outcome
    asked: int | None
    """The number of micro-batches that the caller asked for; `None`: all that there are."""
    found: int | None
    """The number of micro-batches that the stage has; `None` if it has no data."""
    ended: bool = True
    """Whether that is all of its data, or all that was asked for."""
    inputs: tuple[Signature, ...] = ()
    """The signature of each micro-batch's input, from the first stage."""
    digests: tuple[Digests, ...] = ()
    """Of each micro-batch, from the stages that read micro-batches and compare them."""
    check_finite: bool = False
    """Whether the stages compare notes after the run as well."""
    rehearsals: int = 0
    """New signatures among the inputs, which every stage of a replica finds out for itself."""
    weights: Any = None
    """What the stage says of its weights, where an evaluation begins."""


@dataclass(frozen=True)
class Agreement:
    """What all stages know before a run."""

    micro_batches: int
    """M, in this replica."""
    inputs: tuple[Signature, ...]
    final: bool
    """Whether no replica has any more data."""
    everywhere: int
    """Micro-batches of this run in all replicas."""
    rehearsals: int
    """The most new signatures that a replica has to rehearse."""
    weights: list[list[Any]]
    """What all stages say of their weights, by replica."""


def agree(
    transport: Transport, mine: Announcement, new: Callable[[Sequence[Signature]], Sized]
) -> Agreement:
    """Compare the announcements of all stages of all replicas.

    Args:
        transport: Connection to them.
        mine: What this stage brings.
        new: Those of the given signatures that are not known yet.

    Raises:
        AgreementError: the stages ask for or have different things.
        DifferentDataError: those of this replica read different micro-batches.
    """
    pipeline: list[Announcement] = transport.gather_objects(mine)
    rehearsals = len(new(pipeline[0].inputs))
    brief = [replace(a, inputs=(), digests=(), rehearsals=rehearsals) for a in pipeline]
    replicas: list[list[Announcement]] = transport.gather_from_replicas(brief)
    everyone = {
        _name(stage_id, replica, len(replicas)): announcement
        for replica, announcements in enumerate(replicas)
        for stage_id, announcement in enumerate(announcements)
    }
    _require_same("wanted outcome", {name: a.outcome for name, a in everyone.items()})
    _require_same("check_finite", {name: a.check_finite for name, a in everyone.items()})
    _require_same("num_micro_batches", {name: a.asked or 0 for name, a in everyone.items()})
    for name, announcement in everyone.items():
        if announcement.asked is not None and announcement.found not in (None, announcement.asked):
            raise AgreementError(
                f"the data of {name} ended after {announcement.found} micro-batches, "
                f"needed {announcement.asked}"
            )
    for replica, announcements in enumerate(replicas):
        names = [_name(stage_id, replica, len(replicas)) for stage_id in range(len(announcements))]
        found = dict(zip(names, (a.found for a in announcements), strict=True))
        _require_same("number of micro-batches", found)
    require_same_data([announcement.digests for announcement in pipeline])
    counts = [announcements[0].found or 0 for announcements in replicas]
    return Agreement(
        micro_batches=counts[transport.replica],
        inputs=pipeline[0].inputs,
        final=all(announcements[0].ended for announcements in replicas),
        everywhere=sum(counts),
        rehearsals=max(announcements[0].rehearsals for announcements in replicas),
        weights=[[a.weights for a in announcements] for announcements in replicas],
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
