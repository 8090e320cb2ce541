"""Detection of dead ranks: which process is missing when a connection breaks.

A broken connection is a symptom. Mostly a rank failed and said so; then the store has the cause in
a moment. Else a process is gone without a word, and the rank whose heartbeats stopped is missing.
"""

import time
from contextlib import suppress

from runtime.failure.detection.heartbeat import SILENT_SECONDS, HeartbeatTask, unanswered_by
from runtime.failure.report import Failure, names
from runtime.failure.state import FailureState
from runtime.transport.protocol import ConnectionLostError
from runtime.transport.rendezvous import RendezvousStore

CAUSE_SECONDS = 0.35
"""How long a cause may take to appear: some heartbeats of all ranks."""

DETECTION_SECONDS = 1.0
"""How long a process may take to show that it lives, if several or none seem to be missing."""


def lost(
    error: ConnectionLostError,
    ranks: RendezvousStore,
    at: str,
    heartbeats: HeartbeatTask,
    state: FailureState,
) -> Failure | None:
    """What to report for a broken connection; `None` if its cause is known meanwhile."""
    silent = _silent(ranks, heartbeats, state)
    if state.failure is not None:
        return None
    here = ranks.names[ranks.rank]
    seen = f"{error} (seen by {here} at {at})"
    unanswered = time.monotonic() - heartbeats.answered
    cut_off = unanswered > SILENT_SECONDS + heartbeats.slack
    # On a machine that is busy, some of them may only be late.
    ended = _ended(silent, ranks) if len(silent) > 1 or cut_off else set()
    silent = ended or silent
    gone, kind = tuple(sorted(silent)), "lost"
    if heartbeats.store_lost is not None:
        reason = f"a connection and {ranks.place} were lost: {heartbeats.store_error}; {seen}"
        gone = tuple(set(range(ranks.size)) - {ranks.rank})
    elif cut_off and not ended:
        reason = f"{unanswered_by(ranks.place, unanswered)}; {seen}"
        kind = "stalled"
    elif known := {error.peer} if error.peer in silent else silent:
        who = names([ranks.names[rank] for rank in sorted(known)])
        reason = f"{who} ended without a word, or cannot be reached: {seen}"
    else:
        reason = f"the connection broke, though all processes live: {seen}"
    return Failure(kind=kind, reporter=ranks.rank, name=here, at=at, reason=reason, gone=gone)


def _ended(silent: set[int], ranks: RendezvousStore) -> set[int]:
    """Those whose processes have certainly ended, as far as this is known at once."""
    if not ranks.turn.acquire(timeout=CAUSE_SECONDS):  # the store does not answer
        return {rank for rank in silent if ranks.has_ended_here(rank)}
    try:
        with suppress(Exception):  # each kind of store has errors of its own
            ranks.learn(silent)
        return {rank for rank in silent if ranks.has_ended(rank)}
    finally:
        ranks.turn.release()


def _silent(ranks: RendezvousStore, heartbeats: HeartbeatTask, state: FailureState) -> set[int]:
    """The ranks without a heartbeat for some ticks; those that are not evaluating, too."""
    others = set(range(ranks.size)) - {ranks.rank}
    heartbeats.watching = True
    heartbeats.refresh(CAUSE_SECONDS)
    first = {rank: heartbeat.number for rank, heartbeat in heartbeats.latest.items()}
    began = time.monotonic()
    while True:
        latest = heartbeats.latest
        silent = {r for r in others if r not in latest or latest[r].number == first.get(r)}
        elapsed = time.monotonic() - began - heartbeats.slack
        one = len(silent) == 1 and heartbeats.answered > began  # else silence says nothing
        clear = elapsed > CAUSE_SECONDS and (one or heartbeats.store_lost is not None)
        if clear or elapsed > DETECTION_SECONDS or state.wait(0.05) is not None:
            return silent
        heartbeats.refresh(CAUSE_SECONDS)
