"""`pipeval convert`: a checkpoint in another format."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from runtime.cli.output import others_on_stderr
from schedcc.cli.output import output_kept
from schedcc.io.plain_text import visible


def convert_command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="smollm2, a GGUF file, or a directory: Hugging Face's, one of this package, "
            "or DeepSpeed's.",
        ),
    ],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="Directory to be made.")],
    to: Annotated[
        Literal["layers", "deepspeed", "hf"],
        typer.Option(help="layers: a safetensors file for each layer, and a manifest."),
    ] = "layers",
    config: Annotated[
        Path | None,
        typer.Option(help="A directory with the config.json of the model, if SRC has none."),
    ] = None,
) -> None:
    """Convert a checkpoint, with memory for one layer.

    DST is whole at the end, or as it was before.

    Example:
      pipeval convert smollm2 smollm2-layers --to layers
    """
    with others_on_stderr():
        from runtime.language.convert import convert

        summary = convert(source, destination, to, config)
    with output_kept():
        typer.echo(f"{visible(destination)}: {visible(summary)}")
