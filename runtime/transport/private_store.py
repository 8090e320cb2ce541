"""A store that only this user can reach: a directory of this machine with a file for each key.

A store of torch listens on a port, which any user of the machine can connect to, and knows no
password. Here the system decides who reads and writes: the directory is this user's alone. It needs
no process that serves it, so it is there whatever becomes of the ranks. A file is replaced as a
whole, so that memory and disk hold one value for each key; torch's `FileStore`, which only
appends, has a file of its own there, for what torch's own process groups tell each other.
"""

import fcntl
import os
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from torch._C._distributed_c10d import PrefixStore, Store

from runtime.transport.reserve import opened

POLL_SECONDS = 0.005
"""Between two looks for a key that is not there yet."""

GET_SECONDS = 300.0
"""How long a key is waited for; the same as that of a store of torch."""

OF_TORCH = "schedcc.torch"
"""The name of torch's own file in the directory."""

_IN_MEMORY = Path("/dev/shm")
_LOCK = "lock"
_PART = 1 << 20
"""Bytes that are read at once."""


class PrivateStoreError(RuntimeError):
    """A directory is not this user's alone, or a key did not come."""


def make_directory() -> Path:
    """A new directory that only this user can enter, in memory where the system has that."""
    for place in (_IN_MEMORY, None):
        if place is None or place.is_dir():
            with suppress(OSError):
                return Path(tempfile.mkdtemp(prefix="schedcc-", dir=place))
    raise PrivateStoreError(
        f"neither {_IN_MEMORY} nor {tempfile.gettempdir()} takes a new directory, needed one"
    )


def remove_directory(directory: Path) -> None:
    """Remove the directory of a run that is over; another time does nothing."""
    shutil.rmtree(directory, ignore_errors=True)


def require_private(directory: Path) -> None:
    """Refuse a directory that anybody else can enter, or has put there.

    Raises:
        PrivateStoreError: it is none, belongs to another user, or lets others in.
    """
    try:
        found = os.lstat(directory)
    except OSError as error:
        raise PrivateStoreError(f"{directory}: {error.strerror}, needed a directory") from error
    mode = stat.S_IMODE(found.st_mode)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or mode & 0o077:
        raise PrivateStoreError(
            f"{directory} is of user {found.st_uid} with mode {mode:o}, needed a directory of user "
            f"{os.getuid()} that nobody else can enter (mode 700)"
        )


def _all_of(descriptor: int) -> bytes:
    parts = []
    while part := os.read(descriptor, _PART):
        parts.append(part)
    return b"".join(parts)


def _write_all(descriptor: int, value: bytes) -> None:
    while value:
        value = value[os.write(descriptor, value) :]


@dataclass(frozen=True)
class PrivateStore:
    """Keys and values of a run, with the methods that the stores of torch have."""

    directory: str
    prefix: str = ""

    def part(self, prefix: str) -> "PrivateStore":
        """The part of it whose keys have one more prefix."""
        return PrivateStore(self.directory, f"{self.prefix}{prefix}/")

    def set(self, key: str, value: str | bytes) -> None:
        """Give a key a value."""
        self._write(self._file(key), value)

    def get(self, key: str) -> bytes:
        """The value of a key, which is waited for.

        Raises:
            PrivateStoreError: nobody gives it one.
        """
        end = time.monotonic() + GET_SECONDS
        while (value := self._read(self._file(key))) is None:
            if time.monotonic() > end:
                raise PrivateStoreError(f"{self.prefix}{key} did not come within {GET_SECONDS:g} s")
            time.sleep(POLL_SECONDS)
        return value

    def multi_get(self, keys: Sequence[str]) -> list[bytes]:
        """The values of several keys."""
        return [self.get(key) for key in keys]

    def check(self, keys: Sequence[str]) -> bool:
        """Whether all of these keys have values."""
        missing = any(not os.path.exists(self._file(key)) for key in keys)
        if missing:
            self._require()
        return not missing

    def add(self, key: str, amount: int) -> int:
        """Add to the number that a key has, 0 to begin with; the sum."""
        with self._locked():
            file = self._file(key)
            found = self._read(file) or b"0"
            try:
                total = int(found) + amount
            except ValueError:
                raise PrivateStoreError(
                    f"{self.prefix}{key} has a value of {len(found)} bytes, needed a number"
                ) from None
            self._write(file, str(total))
        return total

    def compare_set(self, key: str, expected: str, desired: str) -> bytes:
        """Give a key a value if it has the expected one, or none; what it has then."""
        with self._locked():
            file = self._file(key)
            found = self._read(file)
            if found in (None, expected.encode()):
                self._write(file, desired)
                return desired.encode()
        assert found is not None
        return found

    def delete_key(self, key: str) -> bool:
        """Forget a key; whether it was there."""
        try:
            os.unlink(self._file(key))
        except FileNotFoundError:
            return False
        return True

    def has_extended_api(self) -> bool:
        """Whether several keys can be read at once."""
        return True

    def _file(self, key: str) -> str:
        """Names of files are short and have no slashes, whatever the keys are."""
        # Strings, and no paths: every rank reads the heartbeats of all, ten times a second.
        return f"{self.directory}/{sha256(f'{self.prefix}{key}'.encode()).hexdigest()}"

    def _read(self, file: str) -> bytes | None:
        try:
            with opened(file, os.O_RDONLY) as descriptor:
                return _all_of(descriptor)
        except FileNotFoundError:
            self._require()
            return None

    def _write(self, file: str, value: str | bytes) -> None:
        new = f"{self.directory}/new {os.getpid()} {threading.get_ident()}"
        try:
            with opened(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as descriptor:
                _write_all(descriptor, value.encode() if isinstance(value, str) else value)
            os.replace(new, file)
        except OSError as error:
            raise self._failed(error) from error

    def _require(self) -> None:
        if not os.path.isdir(self.directory):
            raise PrivateStoreError(f"{self.directory} is gone: the run was ended")

    def _failed(self, error: OSError) -> PrivateStoreError:
        self._require()
        return PrivateStoreError(f"{self.directory} cannot be used: {error.strerror}")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            with opened(f"{self.directory}/{_LOCK}", os.O_WRONLY | os.O_CREAT) as descriptor:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                try:
                    yield
                finally:  # a process that is forked off meanwhile holds the descriptor, too
                    fcntl.flock(descriptor, fcntl.LOCK_UN)
        except OSError as error:
            raise self._failed(error) from error


AnyStore = Store | PrivateStore


def part_of(store: AnyStore, prefix: str) -> AnyStore:
    """The part of a store whose keys have a prefix."""
    return store.part(prefix) if isinstance(store, PrivateStore) else PrefixStore(prefix, store)
