"""What the commands print. Text is plain: nothing in it is markup, and no character controls."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from schedcc.io.plain_text import visible

BROKEN_PIPE = 1
"""Exit status where nobody reads on, as click has it."""

_WIDEST = 1_000_000
"""Columns of a console that cuts nothing off."""


def say(text: object, *, error: bool = False) -> None:
    """Print a text of one or several lines."""
    typer.echo(visible(text, lines=True), err=error)


def print_rich(content: Table | Text, width: int = _WIDEST) -> None:
    """Print a table, or a text with styles; colours only on a terminal.

    Args:
        content: Its text from outside has gone through `cell_text`.
        width: Columns into which a table has to fit; by default it is never narrowed.
    """
    console = Console(highlight=False, markup=False, emoji=False, width=width)
    console.print(content, soft_wrap=isinstance(content, Text))


def screen_width() -> int:
    """Columns of the terminal; 80 where there is none, unless the environment says how many."""
    return Console().width


def cell_text(text: object) -> str:
    """A text from outside for a cell of a table."""
    return visible(text, lines=True)


@contextmanager
def output_kept() -> Iterator[None]:
    """Make sure that what is printed inside arrives.

    Raises:
        ValueError: it cannot be written, as on a full disk.
        SystemExit: nobody reads on, which is no fault, and needs no word.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        _forget_output()
        raise SystemExit(BROKEN_PIPE) from None
    except OSError as error:
        _forget_output()
        raise ValueError(f"standard output cannot be written: {error.strerror}") from None


def _forget_output() -> None:
    """Keep Python from writing once more, at its end, what could not be written."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
