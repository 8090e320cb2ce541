"""Where the command `schedcc` begins: from here on, imports included, Ctrl-C is no traceback."""

import signal
from typing import NoReturn

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


def main() -> NoReturn:
    """Run the command line."""
    signal.signal(signal.SIGINT, _end)
    from schedcc.cli import main as run

    run()


def _end(*_: object) -> NoReturn:
    raise SystemExit(INTERRUPTED)
