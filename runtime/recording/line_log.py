"""A file of lines that outlives its process.

Every line is one `os.write` of a whole line to a file opened for appending. Once `write` has
returned, the line is the kernel's: whatever ends the process, SIGKILL included, the line stays.
Only against the loss of power or of the kernel would `fsync` help. It takes milliseconds on a disk,
a thousand times as long as the write, so it is left to the moments where nobody waits for it.
"""

import contextlib
import fcntl
import os
import warnings
from pathlib import Path


class LineLog:
    """Appends lines to a new file, and locks it while this process can still write to it.

    A log must not be what ends an evaluation: when it can no longer be written (the disk is full),
    it says so in a warning, once, and takes no more lines.
    """

    def __init__(self, path: Path) -> None:
        """Create the file.

        Raises:
            FileExistsError: it exists.
            OSError: it cannot be created.
        """
        self._path = path
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._file: int | None = os.open(path, flags, 0o644)
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def write(self, line: str) -> None:
        """Append one line, given without its end."""
        if self._file is None:
            return
        data = line.encode() + b"\n"
        try:
            written = os.write(self._file, data)
        except OSError as error:
            self._give_up(error.strerror or "unknown error")
        else:
            if written < len(data):
                self._give_up(f"only {written} of {len(data)} bytes were written")

    def sync(self) -> None:
        """Make what was written survive the loss of power as well."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.fsync(self._file)

    def close(self) -> None:
        """Take no more lines."""
        if self._file is not None:
            self.sync()
            os.close(self._file)
            self._file = None

    def _give_up(self, reason: str) -> None:
        warnings.warn(f"{self._path}: recording ends here: {reason}", RuntimeWarning, stacklevel=3)
        self.close()
