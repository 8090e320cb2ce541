"""Sockets between processes of one host: how the two ends of a channel find each other.

The receiving end listens under a name in the abstract namespace, which no file system has to be
shared for; it is tried only between processes that see the same network of the same running system.
"""

import os
import socket
import struct
from contextlib import suppress
from pathlib import Path
from secrets import token_hex

from runtime.transport.shared_memory.endpoint import LocalChannelError
from runtime.transport.shared_memory.segments import supported

ACCEPT_SECONDS = 5.0
"""The other end has connected already."""

_CREDENTIALS = struct.Struct("3i")  # process, user, group


def host_key() -> str:
    """The same for processes that can connect to each other here; empty: none can."""
    if not supported():
        return ""
    with suppress(OSError), Listener():
        running = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        network = Path("/proc/self/ns/net").stat().st_ino
        name = socket.gethostname().replace("/", "-")  # copies of a running machine share the rest
        return f"{running} {network} {os.getuid()} {name}"
    return ""


class Listener:
    """The receiving end, waiting for one connection."""

    def __init__(self) -> None:
        """Listen."""
        self.name = f"schedcc-{token_hex(16)}"
        self._socket = new_socket()
        self._socket.bind(f"\0{self.name}")
        self._socket.listen(1)

    def accept(self) -> socket.socket:
        """The connection.

        Raises:
            LocalChannelError: it is not that of the same user, or there is none.
        """
        self._socket.settimeout(ACCEPT_SECONDS)
        try:
            connection, _ = self._socket.accept()
        except OSError as error:
            raise LocalChannelError(f"the other end did not connect: {error}") from error
        if not _is_this_user(connection):
            connection.close()
            raise LocalChannelError("the other end is not that of the same user")
        return connection

    def __enter__(self) -> "Listener":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def connect(name: str) -> socket.socket | None:
    """Connect to the listener of that name; `None` if that does not work."""
    connection = new_socket()
    with suppress(OSError):
        connection.connect(f"\0{name}")
        if _is_this_user(connection):
            return connection
    connection.close()
    return None


def new_socket() -> socket.socket:
    """A socket within this host, not connected."""
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # keeps messages apart


def _is_this_user(connection: socket.socket) -> bool:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, user, _ = _CREDENTIALS.unpack(credentials)
    return bool(user == os.getuid())
