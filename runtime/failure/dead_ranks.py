"""The roll call: which process is missing when a connection breaks.

A broken connection is a symptom. Mostly somebody failed and said so; then the board has the cause
in a moment. Else a process is gone without a word, and who leaves no more signs of life is missing.
"""

import time

from runtime.failure.heartbeat import STORE_GONE, Courier
from runtime.failure.report import Failure, names
from runtime.failure.state import Incident
from runtime.failure.store import MeetingPlace
from runtime.transport.protocol import ConnectionLostError

CAUSE_SECONDS = 0.35
"""How long a cause may take to appear: some rounds of everybody's courier."""

ROLL_CALL_SECONDS = 1.0
"""How long a process may take to show that it lives, if several or none seem to be missing."""


def lost(
    error: ConnectionLostError, place: MeetingPlace, at: str, courier: Courier, incident: Incident
) -> Failure | None:
    """What to report for a broken connection; `None` if its cause is known meanwhile."""
    silent = _silent(place, courier, incident)
    if incident.failure is not None:
        return None
    here = place.names[place.rank]
    seen = f"{error} (seen by {here} at {at})"
    if courier.store_lost is not None:
        reason = f"a connection and the store were lost: {STORE_GONE}; {seen}"
        others = tuple(set(range(place.size)) - {place.rank})
        return Failure(
            kind="lost", reporter=place.rank, stage=here, at=at, reason=reason, gone=others
        )
    known = {error.peer} if error.peer in silent else silent
    if known:
        who = names([place.names[rank] for rank in sorted(known)])
        verdict = f"{who} ended without a word, or cannot be reached"
    else:
        verdict = "the connection broke, though all processes live"
    return Failure(
        kind="lost",
        reporter=place.rank,
        stage=here,
        at=at,
        reason=f"{verdict}: {seen}",
        gone=tuple(sorted(silent)),
    )


def _silent(place: MeetingPlace, courier: Courier, incident: Incident) -> set[int]:
    """The ranks that leave no sign of life for some rounds; those that are not evaluating, too."""
    others = set(range(place.size)) - {place.rank}
    courier.watching = True
    courier.refresh(CAUSE_SECONDS)
    first = {rank: beat.number for rank, beat in courier.beats.items()}
    began = time.monotonic()
    while True:
        silent = {
            rank
            for rank in others
            if rank not in courier.beats or courier.beats[rank].number == first.get(rank)
        }
        elapsed = time.monotonic() - began
        clear = elapsed > CAUSE_SECONDS and (len(silent) == 1 or courier.store_lost is not None)
        if clear or elapsed > ROLL_CALL_SECONDS or incident.wait(0.05) is not None:
            return silent
        courier.refresh(CAUSE_SECONDS)
