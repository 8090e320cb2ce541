"""The command line of the compiler.

Exit status: 0 sound, 1 findings, 2 bad input (one line on standard error).
"""

from typing import Annotated, NoReturn

import typer

from schedcc import __version__
from schedcc.cli.breakdown import breakdown_command
from schedcc.cli.command_line import CommandLine
from schedcc.cli.exchange import export_command, import_command
from schedcc.cli.output import output_kept, say
from schedcc.cli.plans import check_command, compile_command, show
from schedcc.cli.recordings import conform_command, postmortem_command
from schedcc.cli.schedules import schedules_command
from schedcc.cli.timing import compare_command, simulate_command
from schedcc.cli.trace import trace_command

_HELP = """Compile, draw, verify and simulate pipeline-parallel evaluation schedules.

Examples:
  schedcc compile -M 8 -S 4 -o plan.json
  schedcc check plan.json
  schedcc compile -M 8 -S 4 --overlap | schedcc show -

Exit status: 0 sound, or done; 1 findings, deviations, or a run that died; 2 bad input or output,
in one line on standard error; 130 interrupted. Colours only on a terminal, never with NO_COLOR.
"""

app = CommandLine(name="schedcc", help=_HELP, no_args_is_help=True)
app.command("compile")(compile_command)
app.command("schedules")(schedules_command)
app.command("show")(show)
app.command("check")(check_command)
app.command("simulate")(simulate_command)
app.command("compare")(compare_command)
app.command("postmortem")(postmortem_command)
app.command("conform")(conform_command)
app.command("breakdown")(breakdown_command)
app.command("trace")(trace_command)
app.command("export")(export_command)
app.command("import")(import_command)


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Handle what is no command."""
    if show:
        typer.echo(__version__)
        raise typer.Exit


def main() -> NoReturn:
    """Run the command line; bad input is one line on standard error and exit status 2."""
    try:
        with output_kept():
            app()
    except ValueError as error:
        say(f"schedcc: {error}", error=True)
        raise SystemExit(2) from None
    raise SystemExit(0)
