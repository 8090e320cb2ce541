"""Signals in a rank that a launcher started: it ends at once, whatever it waits for.

Python runs a signal's handler between two instructions of the main thread, so a thread that waits
in a transfer would not hear of Ctrl-C. But the signal is written to a descriptor at once, and a
thread that reads it can end the process.
"""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def ending_at_once(message: str | None) -> Iterator[None]:
    """End the process on Ctrl-C or SIGTERM, with the exit status that shells expect.

    Args:
        message: A line for standard error on Ctrl-C; `None` leaves it to another rank.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before = [(number, signal.signal(number, lambda *_: None)) for number in SIGNALS]
    descriptor = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=_end_on_signal, args=(reader, message), daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(descriptor)
        for number, handler in before:
            signal.signal(number, handler)
        writer.close()
        thread.join()
        reader.close()


def _end_on_signal(reader: socket.socket, message: str | None) -> None:
    while data := reader.recv(1):
        if data[0] not in SIGNALS:
            continue
        if message is not None and data[0] == signal.SIGINT:
            os.write(2, f"{message}\n".encode())
        os._exit(128 + data[0])
