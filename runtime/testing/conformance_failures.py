"""Cases of conformance: waits that are ended, and channels that are made anew."""

import threading

import torch

from runtime.transport.protocol import ConnectionLostError, Transport

SOON = 0.05
"""Seconds after which a wait is ended: it has begun by then, or will not begin any more."""


def open_channels(end: Transport, timeout: float) -> None:
    """Open the channels of a generation, and connect all pairs of ranks."""
    if not end.usable:
        end.open(timeout)
    others = [rank for rank in range(end.ranks) if rank != end.rank]
    end.connect(others, others)


def an_abandoned_wait_ends_and_names_its_peer(end: Transport) -> None:
    """From another thread, without the help of any other rank."""
    _fail(end)
    assert end.generation == 1
    assert not end.usable
    open_channels(end, 20.0)
    assert end.usable


def channels_work_again_after_a_failure(end: Transport) -> None:
    """Again and again; what was sent before is not received afterwards."""
    for failures in range(1, 4):
        _fail(end)
        open_channels(end, 20.0)
        assert end.generation == failures
        assert end.gather_objects(end.rank) == list(range(end.ranks))
        number = torch.tensor([failures], dtype=torch.int32, device=end.device)
        if end.rank == 0:
            end.wait(end.post_send([number], 1))
        elif end.rank == 1:
            place = torch.zeros_like(number)
            end.wait(end.post_receive([place], 0))
            assert torch.equal(place.cpu(), number.cpu())


def _fail(end: Transport) -> None:
    """Rank 1 waits for what will not come, until it abandons its end; then the others do."""
    assert end.rendezvous is not None
    ended = f"ended {end.generation}"
    if end.rank != 1:
        if end.rank == 0:  # a send that is never received
            end.post_send([torch.full((1,), -1, dtype=torch.int32, device=end.device)], 1)
        end.rendezvous.store.get(ended)  # which waits for it
        end.abandon()
        return
    ended_well, peer, text = _wait_in_vain(end)
    end.rendezvous.store.set(ended, "yes")
    assert not ended_well, "a wait for what was never sent has ended well"
    if end.ranks > 2:
        assert peer == 2, f"names rank {peer}: {text}"
        assert "receive from" in text, text


def _wait_in_vain(end: Transport) -> tuple[bool, int | None, str]:
    """Wait for a message of rank 2, or for all if there is none, and abandon the channels.

    Returns:
        Whether the wait has ended well; the peer and the text of its error. (Not the error itself,
        whose traceback would keep the channels from being closed at once.)
    """
    place = torch.zeros(2, dtype=torch.int32, device=end.device)
    pending = end.post_receive([place], 2) if end.ranks > 2 else None
    abandoning = threading.Timer(SOON, end.abandon)
    abandoning.start()
    try:
        if pending is None:
            end.gather_objects(None)
        else:
            end.wait(pending)
    except ConnectionLostError as error:
        return False, error.peer, str(error)
    finally:
        abandoning.join()
    return True, None, ""
