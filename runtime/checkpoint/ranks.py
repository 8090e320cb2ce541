"""All ranks do a thing, or all raise the same error: stages and data-parallel replicas alike."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any, TypeVar

from runtime.agreement import RemoteError
from runtime.checkpoint.errors import CheckpointError
from runtime.transport.protocol import Transport

Result = TypeVar("Result")


def everyone(transport: Transport, value: Any) -> list[list[Any]]:
    """Every rank's `value`, by stage and replica: `values[stage_id][replica]`."""
    return transport.gather_objects(transport.gather_from_replicas(value))


def together(transport: Transport, action: Callable[[], Result]) -> list[list[Result]]:
    """Run `action` on every rank; when it fails on one, raise on all.

    Returns:
        What each rank's action returned, by stage and replica.

    Raises:
        CheckpointError: the first one of any rank, in order of stages, with the same message on
            all ranks.
        RemoteError: another kind of error on another rank, with its traceback. On the rank where it
            happened, the error itself.
    """
    error: Exception | None = None
    outcome: Any = None
    try:
        outcome = action()
    except Exception as raised:
        error = raised
        known = isinstance(raised, CheckpointError)
        outcome = _Failure(str(raised) if known else None, traceback.format_exc())
    values = everyone(transport, outcome)
    for stage_id, replicas in enumerate(values):
        for replica, value in enumerate(replicas):
            if not isinstance(value, _Failure):
                continue
            if value.sentence is not None:
                raise CheckpointError(value.sentence) from error
            if error is not None and not isinstance(error, CheckpointError):
                raise error
            raise RemoteError(f"stage {stage_id}, replica {replica} failed:\n{value.trace}")
    return values


class _Failure:
    def __init__(self, sentence: str | None, trace: str) -> None:
        self.sentence, self.trace = sentence, trace
