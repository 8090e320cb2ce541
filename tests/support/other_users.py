"""What another user of the machine can do to a run, and what of it is open to him."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.forks import forks

NOBODY = 65534
_LISTENS = "0A"

root_only = pytest.mark.skipif(
    os.getuid() != 0, reason="only root can become another user, as these tests have to"
)


def as_nobody(function: Callable[[Any], Any], argument: Any) -> Any:
    """What `function(argument)` returns in a process of the user nobody."""
    ours, theirs = multiprocessing.Pipe()
    process = forks().Process(target=_become_nobody, args=(function, argument, theirs))
    process.start()
    theirs.close()
    try:
        assert ours.poll(60), "the other user hangs"
        return ours.recv()
    finally:
        process.kill()
        process.join()


def _become_nobody(function: Callable[[Any], Any], argument: Any, end: Any) -> None:
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    end.send(function(argument))


def ports(process: int) -> list[str]:
    """The local addresses on which a process listens, over IP."""
    inodes = set()
    for descriptor in Path(f"/proc/{process}/fd").iterdir():
        with suppress(FileNotFoundError):
            inodes.add(os.readlink(descriptor))
    rows = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/{process}/net/{table}").read_text().splitlines()[1:]
    ]
    return [row[1] for row in rows if row[3] == _LISTENS and f"socket:[{row[9]}]" in inodes]


def opened(paths: list[str]) -> list[str]:
    """Those of some files and directories that this process can list, read or write."""
    found = []
    for path in paths:
        for attempt in (os.listdir, _read, _write):
            with suppress(OSError):
                attempt(path)
                found.append(f"{attempt.__name__} {path}")
    return found


def _read(path: str) -> None:
    with open(path, "rb", buffering=0) as file:
        file.read(1)


def _write(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))


def connected(names: list[str]) -> int:
    """How many of some Unix sockets take a connection, which is held until this process ends."""
    count = 0
    for name in names:
        probe = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        probe.setblocking(False)
        with suppress(OSError):
            probe.connect(name)
            probe.send(b"filled")
            count += 1
        _HELD.append(probe)
    return count


_HELD: list[socket.socket] = []
