"""What the commands print. Text is plain: nothing in it is markup, and no character controls."""

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from schedcc.io.plain_text import visible

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
