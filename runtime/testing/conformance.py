"""What every transport has to do, as cases: for tests of the ones here, and of a user's own.

A case is a function of one rank's end. All ranks of a pipeline run the same cases at the same
time, each with a transport of its own, as `run_cases` does; a transport of one process runs those
for which one rank is enough. Names are sentences; a case that does not hold raises.
"""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from runtime.testing import conformance_failures as failures
from runtime.testing import conformance_messages as messages
from runtime.transport.protocol import Transport

TIMEOUT = 20.0
"""Seconds that a wait may take: the counterpart may have failed its case, and ended."""


@dataclass(frozen=True)
class Case:
    """Something that every transport does."""

    run: Callable[[Transport], None]
    """Called on every rank at the same time, with open channels between all pairs of ranks."""
    ranks: int = 3
    """The fewest that it needs."""

    @property
    def name(self) -> str:
        """As a sentence without spaces."""
        return self.run.__name__


CASES = (
    Case(messages.each_end_knows_its_place, ranks=1),
    Case(messages.objects_of_any_size_are_gathered_by_rank, ranks=1),
    Case(messages.a_broadcast_overwrites_the_tensor_of_every_rank, ranks=1),
    Case(messages.an_empty_group_is_nothing, ranks=1),
    Case(messages.messages_of_a_channel_arrive_in_order),
    Case(messages.tensors_of_every_dtype_arrive_as_they_were, ranks=2),
    Case(messages.small_and_large_messages_follow_each_other, ranks=2),
    Case(messages.receive_memory_keeps_its_contents_when_it_is_released, ranks=2),
    Case(messages.members_of_a_group_do_not_wait_for_each_other, ranks=2),
    Case(messages.a_group_may_be_a_ring),
    Case(messages.transfers_are_waited_for_in_any_order, ranks=2),
    Case(messages.collectives_may_come_between_post_and_wait, ranks=2),
    Case(messages.objects_of_any_size_go_to_a_neighbour, ranks=2),
    Case(messages.a_tensor_with_gaps_is_refused, ranks=2),
    Case(failures.an_abandoned_wait_ends_and_names_its_peer, ranks=2),
    Case(failures.channels_work_again_after_a_failure, ranks=2),
)

_LISTING = threading.Lock()

LEAVES_NOTHING = "a_closed_transport_leaves_no_descriptor_and_no_thread"


def run_cases(make: Callable[[], Transport]) -> dict[str, str]:
    """Run all cases on this rank, while the other ranks do the same.

    Args:
        make: This rank's end of new channels, which all ranks ask for at the same time.

    Returns:
        What went wrong, by the name of the case; empty if nothing did. After one that fails no
        other is run, since the ranks are not at the same place any more.
    """
    outcomes: dict[str, str] = {}
    held: list[tuple[int, int]] = []
    for case in CASES:
        try:
            if not _run(case, make):
                continue
        except Exception as error:
            outcomes[case.name] = f"{type(error).__name__}: {error}"
            return outcomes
        outcomes[case.name] = ""
        held.append(_held())
    first, last = held[0], held[-1]  # the first one loads what stays for the process
    left = f"(descriptors, threads) are {first} after one case and {last} after all"
    outcomes[LEAVES_NOTHING] = "" if last[0] <= first[0] and last[1] <= first[1] else left
    return outcomes


def _run(case: Case, make: Callable[[], Transport]) -> bool:
    """Run a case on new channels; whether there are enough ranks for it."""
    end = make()
    try:
        if end.ranks < case.ranks:
            return False
        failures.open_channels(end, TIMEOUT)
        case.run(end)
        end.gather_objects(None)  # no rank closes its end while another one uses it
        return True
    finally:
        end.close()


def _held() -> tuple[int, int]:
    """Descriptors of this process, and threads of transports."""
    threads: list[Any] = [t for t in threading.enumerate() if t.name.startswith("schedcc")]
    for thread in threads:
        thread.join(1.0)
    if torch.cuda.is_available():  # the driver opens descriptors as it likes
        return 0, sum(thread.is_alive() for thread in threads)
    with _LISTING:  # which itself takes a descriptor
        return len(os.listdir("/proc/self/fd")), sum(thread.is_alive() for thread in threads)
