"""`pipeval inspect`: what a checkpoint holds, and how it divides."""

from typing import Annotated

import typer

from runtime.cli.output import others_on_stderr
from schedcc.cli.output import output_kept


def inspect_command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="DIR|FILE",
            help="smollm2, a checkpoint's directory, or a file: .gguf, .safetensors, .pt, .bin.",
        ),
    ],
    stages: Annotated[
        int | None,
        typer.Option("--stages", "-S", help="Show the partition of pipeval into S stages."),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read everything, and compare with its checksums.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Show layers and sizes of a checkpoint, and its partition.

    The partition is that of pipeval with windows of 512 tokens: balanced by arithmetic. What is no
    language model is divided by bytes.

    Example:
      pipeval inspect smollm2 -S 4
    """
    with others_on_stderr():
        from runtime.language.inspect import inspection, print_inspection

        found = inspection(source, stages, verify=verify)
    with output_kept():
        if as_json:
            typer.echo(found.model_dump_json(indent=2))
        else:
            print_inspection(found)
