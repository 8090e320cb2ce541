"""What the commands that draw have in common: where pictures go, and what is said of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from schedcc.cli.output import say
from schedcc.io.plain_text import visible
from schedcc.io.plan_files import write_text
from schedcc.pictures.page import page
from schedcc.pictures.panel import Panel
from schedcc.pictures.svg import svg

Html = Annotated[Path | None, typer.Option("--html", help="Draw a page of its own in this file.")]
Svg = Annotated[Path | None, typer.Option("--svg", help="Draw a picture in this file.")]
Run = Annotated[int | None, typer.Option(help="This run of a recording alone, from 0.")]


def require_recording(run: int | None) -> None:
    """Refuse `--run` where there is no recording.

    Raises:
        ValueError: it was given.
    """
    if run is not None:
        raise ValueError(f"--run is {run}, needed the directory of a recording with it")


def write_pictures(
    title: str, panels: Sequence[Panel], to_html: Path | None, to_svg: Path | None
) -> None:
    """Write what was asked for, and say how much is in it.

    Raises:
        ValueError: a file cannot be written, or there is more than a picture can hold.
    """
    texts = [] if to_html is None else [(to_html, page(title, panels))]
    texts += [] if to_svg is None else [(to_svg, svg(panels))]
    count = sum(len(panel.boxes.start) for panel in panels)
    for path, text in texts:
        write_text(text, path)
        say(f"{visible(path)}: {count} instructions")
