"""Faults of the network between two hosts, and how they are repaired."""

from collections.abc import Callable
from typing import Literal, get_args

from tests.support.hosts import Hosts

Separation = Literal[
    "cable pulled", "link down", "host cut off", "cut one way", "cut the other way"
]
NetworkFault = Separation | Literal["slow network"]
SEPARATIONS: tuple[Separation, ...] = get_args(Separation)

DELAY, LOSS = 0.05, 0.02
"""Of a network that is slow, and no failure: seconds, and the share of frames that is lost."""


def _link(hosts: Hosts, state: str) -> None:
    hosts.run(1, "ip", "link", "set", "eth0", state)


BREAK: dict[NetworkFault, Callable[[Hosts], None]] = {
    "cable pulled": lambda hosts: hosts.plug(1, connected=False),
    "link down": lambda hosts: _link(hosts, "down"),
    "host cut off": lambda hosts: hosts.cut_off(1),
    "cut one way": lambda hosts: hosts.path(1, 0, loss=1.0),
    "cut the other way": lambda hosts: hosts.path(0, 1, loss=1.0),
    "slow network": lambda hosts: hosts.path(1, 0, delay=DELAY, loss=LOSS),
}


def repair(hosts: Hosts) -> None:
    """Make the network between the hosts what it was."""
    _link(hosts, "up")
    hosts.plug(1, connected=True)  # and all frames arrive, at once
