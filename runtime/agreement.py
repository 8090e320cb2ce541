"""Agreement: what all stages make sure of before the first transfer of a run.

Stages that disagree would hang, or worse, exchange the wrong messages. So they compare notes first,
and a disagreement is the same error on every stage.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from runtime.activation import Signature
from runtime.transport.protocol import Transport
from schedcc import Outcome


class AgreementError(ValueError):
    """The stages were called with things that do not fit together."""


class RemoteError(RuntimeError):
    """Another stage failed; the message carries its traceback."""


@dataclass(frozen=True)
class Announcement:
    """What one stage brings to a run."""

    outcome: Outcome
    asked: int | None
    """The number of micro-batches that the caller asked for; `None`: all that there are."""
    found: int | None
    """The number of micro-batches that the stage has; `None` if it needs none."""
    inputs: tuple[Signature, ...] = ()
    """The signature of each micro-batch's input, from the first stage."""
    failure: str | None = None
    """The traceback of what kept the stage from finding its micro-batches."""


@dataclass(frozen=True)
class Agreement:
    """What all stages know before a run."""

    micro_batches: int
    inputs: tuple[Signature, ...]


def agree(transport: Transport, mine: Announcement) -> Agreement:
    """Compare the announcements of all stages.

    Raises:
        RemoteError: a stage announced a failure.
        AgreementError: the stages ask for or have different things.
    """
    everyone: list[Announcement] = transport.gather_objects(mine)
    for stage_id, announcement in enumerate(everyone):
        if announcement.failure is not None:
            raise RemoteError(
                f"stage {stage_id} failed before the first transfer:\n{announcement.failure}"
            )
    require_same("wanted outcome", [announcement.outcome for announcement in everyone])
    require_same("num_micro_batches", [announcement.asked or 0 for announcement in everyone])
    asked = mine.asked
    for stage_id, announcement in enumerate(everyone):
        if asked is not None and announcement.found not in (None, asked):
            raise AgreementError(
                f"the data of stage {stage_id} ended after {announcement.found} micro-batches, "
                f"needed {asked}"
            )
    require_same("number of micro-batches", [announcement.found for announcement in everyone])
    found = everyone[0].found
    assert found is not None, "the first stage always reads inputs"
    return Agreement(found, everyone[0].inputs)


def require_same(what: str, values: Sequence[object]) -> None:
    """Compare what the stages say of themselves, by stage id; `None` says nothing.

    Raises:
        AgreementError: two stages differ; the message names them.
    """
    said = [(stage, value) for stage, value in enumerate(values) if value is not None]
    for stage, value in said[1:]:
        first, expected = said[0]
        if value != expected:
            raise AgreementError(
                f"{what} differs: {expected!r} on stage {first}, {value!r} on stage {stage}"
            )
