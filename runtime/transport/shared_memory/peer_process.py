"""Liveness: whether a process of this host has ended, found out without its help.

A process listens on a socket as long as it lives, and never answers. Whoever knows the name can try
to connect: the system refuses that once the process has ended, however it did.
"""

import os
import socket
from functools import lru_cache
from secrets import token_hex

from runtime.transport.shared_memory.endpoint import closed_in_children
from runtime.transport.shared_memory.sockets import host_key, new_socket

_BACKLOG = 1
"""Nobody is ever accepted; a queue that is full is a sign of life, too."""


def liveness_address() -> str:
    """Where this process can be probed; empty where there is none."""
    return _listening(os.getpid())[0]


def has_ended(address: str) -> bool:
    """Whether the process with that address has certainly ended; never on another host."""
    key, _, name = address.rpartition("/")
    if not key or key != _key():
        return False
    with new_socket() as probe:
        probe.setblocking(False)
        try:
            probe.connect(f"\0{name}")
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False


@lru_cache(maxsize=1)
def _key() -> str:
    return host_key()


@lru_cache(maxsize=1)
def _listening(_process: int) -> tuple[str, socket.socket | None]:
    """Of the process of that number: one that was forked off needs a new one."""
    if not (key := _key()):
        return "", None
    name, listening = f"schedcc-lives-{token_hex(16)}", new_socket()
    listening.bind(f"\0{name}")
    listening.listen(_BACKLOG)
    closed_in_children(listening)
    return f"{key}/{name}", listening
