"""`pipeval`: evaluate a causal language model on text, over the stages of a pipeline.

Without a subcommand it evaluates; `convert` and `inspect` look after checkpoints.

Exit status: 0 done, 1 the run failed or its verification did, 2 bad input (one line on standard
error).
"""

from typing import NoReturn

import typer

from runtime.cli.convert import convert_command
from runtime.cli.evaluate import evaluate
from runtime.cli.inspect import inspect_command
from runtime.language.extras import not_installed
from schedcc.cli.command_line import CommandLine
from schedcc.io.plain_text import visible

app = CommandLine(name="pipeval", subcommand_metavar="[COMMAND] [ARGS]...")
app.callback(invoke_without_command=True)(evaluate)
app.command("convert")(convert_command)
app.command("inspect")(inspect_command)


def main() -> NoReturn:
    """Run the command line."""
    try:
        status = app.status()
    except ModuleNotFoundError as error:
        _fail(2, not_installed(error))
    except (ImportError, ValueError) as error:  # a package that is too old, or bad input
        _fail(2, str(error))
    except (KeyboardInterrupt, typer.Abort):
        _fail(130, "interrupted")
    raise SystemExit(status)


def _fail(status: int, message: str) -> NoReturn:
    typer.echo(f"pipeval: {visible(message, lines=True)}", err=True)
    raise SystemExit(status)
