"""`schedcc schedules`."""

from rich import box
from rich.table import Table

from schedcc.cli.output import print_rich, screen_width
from schedcc.schedules import SUMMARIES


def schedules_command() -> None:
    """List the schedules that ship, and what others call them.

    The names are those of --schedule. A schedule of your own is a value in Python.

    Example:
      schedcc schedules
    """
    table = Table("schedule", "what it is", box=box.ROUNDED, pad_edge=False)
    for name, summary in SUMMARIES.items():
        table.add_row(name, summary)
    print_rich(table, width=min(screen_width(), 100))
