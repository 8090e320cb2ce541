"""The failure store: what comes from it is shown as text, whoever wrote it."""

from torch._C._distributed_c10d import HashStore

from runtime.failure.report import Failure
from runtime.failure.store import FailureStore
from runtime.transport.rendezvous import RendezvousStore

EVIL = "\x1b[2J\x1b]0;owned\x07\x9b1A\r\u202e"
SHOWN = r"\x1b[2J\x1b]0;owned\x07\x9b1A\r\u202e"


def test_a_failure_from_the_store_moves_no_cursor():
    ranks = RendezvousStore(HashStore(), 0, ("stage 0", "stage 1"))
    failure = Failure(
        kind="error",
        reporter=1,
        name=EVIL,
        at=EVIL,
        error=EVIL,
        reason=f"{EVIL}\n{EVIL}",
        traceback=f"Traceback:\n\t{EVIL}\n",
    )
    store = FailureStore(ranks, 0)
    for found in (store.publish(failure), store.read()):
        assert found is not None
        assert found.reason == f"{SHOWN}\n{SHOWN}"
        assert found.traceback == f"Traceback:\n\t{SHOWN}\n"
        assert all(line.replace("\t", "").isprintable() for line in str(found).splitlines())
