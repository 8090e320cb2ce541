"""All ranks do a thing, or all raise the same error: those of a pipeline and its replicas alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

from runtime.checkpoint.errors import CheckpointError
from runtime.transport.protocol import Transport

Result = TypeVar("Result")


def gather_from_all(transport: Transport, value: Any) -> list[list[Any]]:
    """Every rank's `value`, by rank and replica: `values[rank][replica]`."""
    return transport.gather_objects(transport.gather_from_replicas(value))


def on_all_ranks(transport: Transport, action: Callable[[], Result]) -> list[list[Result]]:
    """Run `action` on every rank; when it fails on one, raise on all, when all have ended.

    Returns:
        What each rank's action returned, by rank and replica.

    Raises:
        CheckpointError: the first one of any rank, in order of ranks, with the same message on
            all ranks.
        Exception: another kind of error on this rank. The guard of the run, which has to be there,
            tells the others.
    """
    error: Exception | None = None
    outcome: Any = None
    try:
        outcome = action()
    except Exception as raised:
        error = raised
        outcome = _Failure(str(raised) if isinstance(raised, CheckpointError) else None)
    values = gather_from_all(transport, outcome)
    failures = [value for value in chain.from_iterable(values) if isinstance(value, _Failure)]
    for failure in failures:
        if failure.sentence is not None:
            raise CheckpointError(failure.sentence) from error
    if error is not None:
        raise error
    if failures:
        gather_from_all(transport, None)  # which never comes about: the guard ends it
    return values


@dataclass(frozen=True)
class _Failure:
    sentence: str | None
