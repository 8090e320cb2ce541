"""`pipeval`: evaluate a causal language model on text, over the stages of a pipeline.

Exit status: 0 done, 1 the run failed or its verification did, 2 bad input (one line on standard
error).
"""

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

if TYPE_CHECKING:
    from runtime.job import Job

INPUT_ERRORS = {"ModelError", "TextError", "DeviceError", "PartitionError", "RecordingError"}
"""Errors that a user's input can cause and that only a worker may notice."""

app = typer.Typer(name="pipeval", add_completion=False, pretty_exceptions_enable=False)


@app.command()
def pipeval(
    model: Annotated[
        str, typer.Option(help="smollm2, a GGUF file, or a Hugging Face model directory.")
    ] = "smollm2",
    text: Annotated[
        Path | None, typer.Option(help="Text file; default: Python's language reference.")
    ] = None,
    stages: Annotated[int, typer.Option("--stages", "-S", help="S, the number of stages.")] = 2,
    micro_batch_size: Annotated[int, typer.Option(help="Windows in a micro-batch.")] = 1,
    sequence_length: Annotated[int, typer.Option(help="Tokens in a window.")] = 512,
    max_windows: Annotated[
        int | None, typer.Option(help="Evaluate only the first windows.")
    ] = None,
    documents: Annotated[
        Literal["whole", "lines"],
        typer.Option(help="The text is one document, or holds one document a line."),
    ] = "whole",
    separator_id: Annotated[
        int | None,
        typer.Option(help="Token before each document; default: the model's bos or eos token."),
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option(help="Of the weights.")
    ] = "float32",
    overlap: Annotated[
        bool, typer.Option(help="Let transfers cross the forwards; the results are the same.")
    ] = True,
    threads: Annotated[
        int | None, typer.Option(help="Threads of each process; default: its share of the cores.")
    ] = None,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Compare with the unsplit model in one process as well."),
    ] = False,
    record: Annotated[
        Path | None,
        typer.Option(help="New directory where each stage writes what it executes, as it goes."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Loss and perplexity of a causal language model on a text, over pipeline stages.

    Starts its own processes on this machine, or runs as one rank of a job under torchrun.
    """
    # Here, not above: torch takes seconds to import, which --help need not.
    from runtime.job import Job

    job = Job(
        model=model,
        text=text,
        stages=stages,
        micro_batch_size=micro_batch_size,
        sequence_length=sequence_length,
        max_windows=max_windows,
        documents=documents,
        separator_id=separator_id,
        dtype=dtype,
        overlap=overlap,
        threads=max(1, (os.cpu_count() or 1) // max(1, stages)) if threads is None else threads,
        verify=verify,
        progress=sys.stderr.isatty(),
        record=record,
        started=time.time(),
    )
    raise typer.Exit(_run(job, as_json=as_json))


def _run(job: "Job", *, as_json: bool) -> int:
    from runtime.job import run_rank
    from runtime.launch import launch
    from runtime.process_group import launched
    from runtime.recorder import require_new
    from runtime.report import print_report

    if launched():
        evaluation = run_rank(job)
    else:
        job.check()
        if job.record is not None:
            require_new(job.record)
        job.read_text()  # here for its errors only, before any process is started
        evaluation = launch(job.stages, run_rank, job)
    if evaluation is None:
        return 0
    if as_json:
        typer.echo(evaluation.model_dump_json(indent=2))
    else:
        print_report(evaluation)
    verification = evaluation.verification
    return 0 if verification is None or verification.passed else 1


def main() -> NoReturn:
    """Run the command line."""
    try:
        app()
    except ValueError as error:
        _fail(2, str(error))
    except RuntimeError as error:
        from runtime.launch import WorkerError

        if isinstance(error, WorkerError) and error.kind in INPUT_ERRORS:
            _fail(2, error.reason)
        if isinstance(error, WorkerError) and error.trace:
            typer.echo(error.trace, err=True)
        _fail(1, str(error))
    except ModuleNotFoundError as error:
        _fail(2, f"{error.name} is not installed: pip install 'schedcc[models]' brings it")
    except KeyboardInterrupt:
        _fail(130, "interrupted")
    raise SystemExit(0)


def _fail(status: int, message: str) -> NoReturn:
    typer.echo(f"pipeval: {message}", err=True)
    raise SystemExit(status)
