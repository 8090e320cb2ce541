"""Where the command `pipeval` begins: from here on, imports included, Ctrl-C is at most one line.

Under a launcher every process gets the signal, and would print a traceback: rank 0 speaks for all.
"""

import os
import signal
from contextlib import AbstractContextManager, nullcontext
from types import FrameType
from typing import NoReturn

from runtime.distributed.launch_environment import LaunchError, launched_process
from runtime.distributed.signals import ending_at_once
from runtime.imports import uncollected

MESSAGE = "pipeval: interrupted"
INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


def main() -> NoReturn:
    """Run the command line."""
    with _interruptible():
        default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if default:  # it may be ignored, in the background
            signal.signal(signal.SIGINT, _end)
        with uncollected():
            from runtime.cli import main as run

        if default:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        run()


def _interruptible() -> AbstractContextManager[None]:
    try:
        found = launched_process()
    except LaunchError:  # said later, in one line
        return nullcontext()
    return nullcontext() if found is None else ending_at_once(None if found.rank else MESSAGE)


def _end(_number: int, _frame: FrameType | None) -> NoReturn:
    os.write(2, f"{MESSAGE}\n".encode())
    os._exit(INTERRUPTED)  # an exception in the middle of an import may be taken for another one
