"""`pipeval` without a subcommand: evaluate a language model."""

import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

from runtime.cli.output import others_on_stderr
from runtime.distributed.launch_environment import (
    LaunchError,
    launched_process,
    processes_of_launcher,
)
from runtime.language.extras import require_installed
from schedcc.io.plain_text import visible

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.cli.exits import Exit
    from runtime.language.perplexity.job import Job


def evaluate(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Option(help="smollm2, a GGUF file, or a directory: Hugging Face's, or by layers."),
    ] = "smollm2",
    text: Annotated[
        list[Path] | None,
        typer.Option(
            help="Text file or pipe, or - for standard input; may be given several times, and all "
            "texts count. Default: Python's language reference."
        ),
    ] = None,
    stages: Annotated[
        int | None,
        typer.Option(
            "--stages",
            "-S",
            help="S, the number of stages; default: 2, or with R two on each rank if possible.",
        ),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(help="inference, interleaved or v_shape; default: inference."),
    ] = None,
    ranks: Annotated[
        int | None,
        typer.Option("--ranks", "-R", help="R, the number of processes; default: one a stage."),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(help="Plan to be run as it is: JSON, or a CSV file of torch's."),
    ] = None,
    micro_batch_size: Annotated[int, typer.Option(help="Windows in a micro-batch.")] = 1,
    sequence_length: Annotated[int, typer.Option(help="Tokens in a window.")] = 512,
    max_windows: Annotated[
        int | None, typer.Option(help="Evaluate only the first windows.")
    ] = None,
    documents: Annotated[
        Literal["whole", "lines", "packed"],
        typer.Option(
            help="whole: a text is one document; the first token of each window is not predicted. "
            "lines: each line is a document, predicted alone and from its first token on, as "
            "lm-evaluation-harness does. packed: lines one behind the other in common windows, so "
            "that documents see those before them. Separators are never predicted."
        ),
    ] = "whole",
    separator_id: Annotated[
        int | None,
        typer.Option(
            help="Token before each line that is a document, as context; default: the model's bos "
            "or eos token."
        ),
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option(help="Of the weights.")
    ] = "float32",
    overlap: Annotated[
        bool, typer.Option(help="Let transfers cross the forwards; the results are the same.")
    ] = True,
    channels: Annotated[
        Literal["memory", "shared", "per-edge"] | None,
        typer.Option(
            help="What activations travel through; default: memory that the CPUs of a host share, "
            "one process group for all GPUs."
        ),
    ] = None,
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
    timeout: Annotated[
        float, typer.Option(help="Seconds without any progress after which the run is ended.")
    ] = 300.0,
    check_finite: Annotated[
        bool,
        typer.Option(
            help="If a loss is NaN or infinite, which is an error in any case, name the stage "
            "where it began."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Loss and perplexity of a causal language model on a text, over pipeline stages.

    Starts its own processes on this machine, or runs as one rank of a job under torchrun.
    """
    if context.invoked_subcommand is not None:
        given = [name for name in context.params if _is_given(context, name)]
        if given:
            option = given[0].replace("_", "-")
            raise ValueError(f"--{option} is an option of evaluating, not of a subcommand")
        if others := processes_of_launcher():
            raise LaunchError(
                f"{others[0]} started {others[1]} processes, and {context.invoked_subcommand} is "
                "the work of one: start it without a launcher"
            )
        return
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a lost store is no page of C++ frames
    require_installed()
    started = time.time()
    # Here, not above: torch takes seconds to import, which --help need not.
    with others_on_stderr():
        from runtime.language.perplexity.job import Job
        from runtime.language.perplexity.order import order_of

    def job() -> Job:
        found = launched_process()
        order = order_of(schedule, plan, stages, ranks, found.processes if found else 0)
        cores = os.cpu_count() or 1
        return Job(
            model=model,
            texts=tuple(text or ()),
            order=order,
            micro_batch_size=micro_batch_size,
            sequence_length=sequence_length,
            max_windows=max_windows,
            documents=documents,
            separator_id=separator_id,
            dtype=dtype,
            overlap=overlap,
            channels=channels,
            threads=max(1, cores // order.ranks) if threads is None else threads,
            verify=verify,
            timeout=timeout,
            check_finite=check_finite,
            progress=sys.stderr.isatty(),
            record=record,
            started=started,
        )

    raise typer.Exit(_run(job, as_json=as_json))


def _run(make: "Callable[[], Job]", *, as_json: bool) -> int:
    from runtime.cli.exits import exit_for
    from runtime.distributed.process_group import launched, require_environment
    from runtime.distributed.processes import Terminated, launch
    from runtime.distributed.signals import ending_at_once
    from runtime.language.perplexity.report import print_report
    from runtime.language.perplexity.run import run_rank
    from runtime.language.text import read_texts
    from runtime.recording.recorder import require_new

    running = False
    try:
        with others_on_stderr():
            job = make()
            if launched():
                require_environment(job.order.ranks, job.order.stages)
            job.check()
            if launched():
                running = True
                first = os.environ["RANK"] == "0"
                with ending_at_once("pipeval: interrupted" if first else None):
                    evaluation = run_rank(job)
            else:
                if job.record is not None:
                    require_new(job.record)
                running = True
                evaluation = launch(
                    job.order.ranks, run_rank, job, first=replace(job, read=read_texts(job.texts))
                )
    except (Exception, KeyboardInterrupt, Terminated) as error:
        _end(exit_for(error, running=running))
    if evaluation is None:
        return 0
    if as_json:
        typer.echo(evaluation.model_dump_json(indent=2))
    else:
        print_report(evaluation)
    verification = evaluation.verification
    return 0 if verification is None or verification.passed else 1


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _end(end: "Exit") -> NoReturn:
    if end.trace:
        typer.echo(visible(end.trace, lines=True), err=True)
    if end.message:
        typer.echo(f"pipeval: {visible(end.message, lines=True)}", err=True)
    if end.status > 128:  # a signal; unloading torch would take another second
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.status)
    raise SystemExit(end.status)
