"""Liveness: whether the process of another rank has ended, found out without its help.

A process listens on sockets as long as it lives, and never answers. Whoever knows where can try to
connect: the system refuses that once the process has ended, however it did. On its own host that is
a Unix socket, which nobody else can be meant by. To other hosts it is a TCP socket; there a
connection may also be refused by what is in between. So only a process that could once be reached
counts as ended when it cannot be any more, and silence says nothing.
"""

import errno
import os
import select
import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from secrets import token_hex

from runtime.transport.addresses import own_address
from runtime.transport.shared_memory.endpoint import closed_in_children
from runtime.transport.shared_memory.sockets import host_key, new_socket

_BACKLOG = 1
"""Nobody is ever accepted; on this host, a queue that is full is a sign of life, too."""

_REMOTE_BACKLOG = 4096
"""Of other hosts: who is not in the queue has not reached the process."""

PROBE_SECONDS = 1.0
"""After so long without an answer, a probe of another host is given up; at most one is under way
for each process, and a process that was reached is probed no more often than this."""


def liveness_address(store_host: str = "localhost") -> str:
    """Where this process can be probed; empty where there is none.

    Args:
        store_host: The host of the store, which the other processes reach as well.
    """
    name, _ = _listening(os.getpid())
    remote, _ = _listening_to_others(os.getpid(), own_address(store_host))
    return f"{_key()}/{name}/{remote}" if name or remote else ""


class PeerProcesses:
    """Probes the processes of other ranks, by the addresses that they have given."""

    def __init__(self) -> None:
        """Begin without having reached any."""
        self._reached: dict[str, float] = {}
        """When processes of other hosts were last reached."""
        self._probes: dict[str, tuple[_Probe, float]] = {}
        """What is under way, and since when."""

    def reached(self, address: str) -> bool:
        """Whether it would be known if the process with that address had ended.

        Also where that can never be: there is no more to be done.
        """
        key, _, remote = _parts(address)
        return (key != "" and key == _key()) or not remote or remote in self._reached

    def has_ended_here(self, address: str) -> bool:
        """Whether a process of this host has certainly ended."""
        key, name, _ = _parts(address)
        return bool(key) and key == _key() and _refused_here(name)

    def has_ended(self, address: str) -> bool:
        """Whether the process has certainly ended; the answer for other hosts takes two calls."""
        key, _, remote = _parts(address)
        if key and key == _key():
            return self.has_ended_here(address)
        return bool(remote) and self._refused_there(remote, time.monotonic())

    def close(self) -> None:
        """Give up what is under way."""
        while self._probes:
            self._probes.popitem()[1][0].socket.close()

    def _refused_there(self, remote: str, now: float) -> bool:
        if remote not in self._probes:
            if now - self._reached.get(remote, -PROBE_SECONDS) < PROBE_SECONDS:
                return False
            if (new := _probe(*_place(remote))) is not None:
                self._probes[remote] = new, now
            return False
        probe, since = self._probes[remote]
        over = bool(_over([probe], 0.0))
        if not over and now - since < PROBE_SECONDS:
            return False
        del self._probes[remote]
        probe.socket.close()
        if over and not probe.error:
            self._reached[remote] = now
        return probe.error == errno.ECONNREFUSED and remote in self._reached


def remote_place(address: str) -> tuple[str, int] | None:
    """The host and port at which other hosts can probe a process; `None`: there is none."""
    remote = _parts(address)[2]
    return _place(remote) if remote else None


def connectable(places: Iterable[tuple[str, int]], seconds: float = PROBE_SECONDS) -> bool:
    """Whether a connection to one of these addresses and ports can be made by now.

    The system of the other host makes it, also where the process is stopped: it says that the host
    lives and the network carries something.
    """
    probes = [probe for place in places if (probe := _probe(*place)) is not None]
    under_way, until, reached = probes, time.monotonic() + seconds, False
    while under_way and not reached and (left := until - time.monotonic()) > 0:
        over = _over(under_way, left)
        reached = any(not probe.error for probe in over)
        under_way = [probe for probe in under_way if probe not in over]
    for probe in probes:
        probe.socket.close()
    return reached


def _parts(address: str) -> tuple[str, str, str]:
    key, name, remote = address.split("/") if address else ("", "", "")
    return key, name, remote


def _refused_here(name: str) -> bool:
    with new_socket() as probe:
        probe.setblocking(False)
        try:
            probe.connect(f"\0{name}")
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False


def _place(remote: str) -> tuple[str, int]:
    at, _, port = remote.rpartition(" ")
    return at, int(port)


@dataclass(eq=False)
class _Probe:
    socket: socket.socket
    error: int
    """Why there is no connection: `EINPROGRESS` until that is known, 0 if there is one."""


def _probe(host: str, port: int) -> _Probe | None:
    """Begin to connect to an address; `None` if no descriptor is left."""
    try:
        connecting = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError:
        return None
    connecting.setblocking(False)
    try:
        return _Probe(connecting, connecting.connect_ex((host, port)))
    except OSError:
        connecting.close()
        return None


def _over(probes: Sequence[_Probe], seconds: float) -> list[_Probe]:
    """Those that are over, or the first that are within so many seconds."""
    if at_once := [probe for probe in probes if probe.error != errno.EINPROGRESS]:
        return at_once
    poll = select.poll()  # select() takes no descriptor beyond 1023
    waiting = {probe.socket.fileno(): probe for probe in probes}
    for descriptor in waiting:
        poll.register(descriptor, select.POLLOUT)
    over = [waiting[descriptor] for descriptor, _ in poll.poll(1000 * seconds)]
    for probe in over:
        probe.error = probe.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return over


@lru_cache(maxsize=1)
def _key() -> str:
    return host_key()


@lru_cache(maxsize=1)
def _listening(_process: int) -> tuple[str, socket.socket | None]:
    """Of the process of that number: one that was forked off needs a new one."""
    if not _key():
        return "", None
    name, listening = f"schedcc-lives-{token_hex(16)}", new_socket()
    listening.bind(f"\0{name}")
    listening.listen(_BACKLOG)
    closed_in_children(listening)
    return name, listening


@lru_cache(maxsize=1)
def _listening_to_others(_process: int, at: str) -> tuple[str, socket.socket | None]:
    """The same, at an address of this machine; empty: at none."""
    if not at:
        return "", None
    listening = socket.socket(socket.AF_INET6 if ":" in at else socket.AF_INET)
    try:
        listening.bind((at, 0))
    except OSError:  # an address of a link alone, or one that is gone
        listening.close()
        return "", None
    listening.listen(_REMOTE_BACKLOG)
    closed_in_children(listening)
    return f"{at} {listening.getsockname()[1]}", listening
