"""Sockets between processes of one host: how the two ends of a channel find each other.

The receiving end listens in the directory of the run, which nobody else can enter, or where there
is none under a name in the abstract namespace, which no file system has to be shared for. Other
users see such a name and can connect, so both ends ask the system who the other one is. It is tried
only between processes that see the same network of the same running system.
"""

import os
import socket
import struct
import time
from contextlib import suppress
from pathlib import Path
from secrets import token_hex

from runtime.transport.shared_memory.endpoint import LocalChannelError
from runtime.transport.shared_memory.segments import supported

ACCEPT_SECONDS = 5.0
"""The other end has connected already."""

_BACKLOG = 16
_LONGEST_PATH = 100
"""Bytes; systems take few more."""

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

    def __init__(self, directory: Path | None = None) -> None:
        """Listen in a directory; default: in the abstract namespace."""
        name = f"schedcc-{token_hex(16)}"
        path = name if directory is None else str(directory / name)
        self.name = path if len(os.fsencode(path)) <= _LONGEST_PATH else name
        self._socket = new_socket()
        self._socket.bind(_address(self.name))
        self._socket.listen(_BACKLOG)

    def accept(self) -> socket.socket:
        """The connection.

        Raises:
            LocalChannelError: there is none of this user.
        """
        end = time.monotonic() + ACCEPT_SECONDS
        while (left := end - time.monotonic()) > 0:
            self._socket.settimeout(left)
            try:
                connection, _ = self._socket.accept()
            except OSError as error:
                raise LocalChannelError(f"the other end did not connect: {error}") from error
            if _is_this_user(connection):
                return connection
            connection.close()
        raise LocalChannelError("only other users connected, needed the other end")

    def __enter__(self) -> "Listener":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        if not _is_abstract(self.name):
            Path(self.name).unlink(missing_ok=True)


def connect(name: str) -> socket.socket | None:
    """Connect to the listener of that name; `None` if that does not work."""
    connection = new_socket()
    connection.setblocking(False)  # others may have filled the queue of an abstract name
    with suppress(OSError):
        connection.connect(_address(name))
        connection.setblocking(True)
        if _is_this_user(connection):
            return connection
    connection.close()
    return None


def new_socket() -> socket.socket:
    """A socket within this host, not connected."""
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # keeps messages apart


def _is_abstract(name: str) -> bool:
    return not name.startswith("/")


def _address(name: str) -> str:
    return f"\0{name}" if _is_abstract(name) else name


def _is_this_user(connection: socket.socket) -> bool:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, user, _ = _CREDENTIALS.unpack(credentials)
    return bool(user == os.getuid())
