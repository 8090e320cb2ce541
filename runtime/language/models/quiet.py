"""How transformers is called: without the network, without the code of others, without a word."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""For every `from_pretrained`: files of the model are read, and code beside them is never run.

Where nothing is said about code, transformers asks for leave on standard output and reads the
answer from standard input.
"""


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep progress bars and load reports off the terminal: errors are raised instead.

    Standard output belongs to results, so what is printed nevertheless goes to standard error.
    """
    from transformers import utils

    logging: Any = utils.logging  # its functions have no annotations
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
