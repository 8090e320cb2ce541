"""Lifelines: whether a process of this host has ended, found out without its help.

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


def lifeline() -> str:
    """The name of this process's lifeline; empty where there is none."""
    return _lifeline(os.getpid())[0]


def has_ended(line: str) -> bool:
    """Whether the process of that lifeline has certainly ended; never, if it is on another host."""
    key, _, name = line.rpartition("/")
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
def _lifeline(_process: int) -> tuple[str, socket.socket | None]:
    """Of the process of that number: one that was forked off needs a new one."""
    if not (key := _key()):
        return "", None
    name, line = f"schedcc-lives-{token_hex(16)}", new_socket()
    line.bind(f"\0{name}")
    line.listen(_BACKLOG)
    closed_in_children(line)
    return f"{key}/{name}", line
