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
    cores_of_process,
    launched_process,
    processes_of_launcher,
)
from runtime.imports import uncollected
from runtime.language.extras import require_installed
from runtime.language.preload import MODULES, preload
from runtime.language.progress import Display, style_for
from schedcc import __version__
from schedcc.cli.output import output_kept
from schedcc.io.plain_text import visible

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.cli.exits import Exit
    from runtime.language.perplexity.job import Job

WORKERS_IMPORT = ("runtime.language.perplexity.run", *MODULES)
"""What every process of an evaluation needs; it is imported once for all of them."""


def evaluate(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Option(help="smollm2, a GGUF file, or a directory: Hugging Face's, or by layers."),
    ] = "smollm2",
    text: Annotated[
        list[Path] | None,
        typer.Option(
            help="File, directory, pipe, or - for standard input; may be given several times, and "
            "all texts count. JSONL and parquet hold records; .gz and .zst are read as they are. "
            "Default: Python's language reference."
        ),
    ] = None,
    field: Annotated[
        str | None,
        typer.Option(
            help="What records call their text; default: text. If it is given, standard input and "
            "pipes hold JSONL."
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
        typer.Option(
            help="inference (fill and drain), interleaved, interleaved_wide or v_shape; default: "
            "inference."
        ),
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
        int | None, typer.Option(help="Evaluate only the first windows; default: all.")
    ] = None,
    documents: Annotated[
        Literal["whole", "texts", "lines", "packed"],
        typer.Option(
            help="whole: a text is one document; the first token of each window is not predicted. "
            "texts: each text (a file, or a record) is predicted alone, from its first token on. "
            "lines: the same of each line and of each record, as lm-evaluation-harness does. "
            "packed: lines and records one behind the other in common windows, so that documents "
            "see those before them. Separators are never predicted."
        ),
    ] = "whole",
    bos: Annotated[
        bool | None,
        typer.Option(
            help="Put the token for the beginning of a text before every window; default: what the "
            "tokenizer does, for whole and packed documents."
        ),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(
            help="Tokens between the beginnings of windows, which overlap then; no token is "
            "predicted twice."
        ),
    ] = None,
    chat_template: Annotated[
        bool,
        typer.Option(
            "--chat-template",
            help="Write texts with the model's chat template: lists of messages in records, and "
            "other texts as a message of a user.",
        ),
    ] = False,
    separator_id: Annotated[
        int | None,
        typer.Option(
            help="Token before each document, as context; default: the model's bos or eos token."
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
    cuda_graphs: Annotated[
        bool,
        typer.Option(
            "--cuda-graphs",
            help="Capture forwards into CUDA graphs: for small models, which the host cannot "
            "launch as fast as a GPU runs them.",
        ),
    ] = False,
    check_finite: Annotated[
        bool,
        typer.Option(
            help="If a loss is NaN or infinite, which is an error in any case, name the stage "
            "where it began."
        ),
    ] = False,
    per_document: Annotated[
        Path | None, typer.Option(help="File for the scores of documents, as JSONL.")
    ] = None,
    per_token: Annotated[
        Path | None, typer.Option(help="File for the losses of tokens, as JSONL.")
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Directory where results are kept as they come: a run that was ended goes on "
            "there."
        ),
    ] = None,
    partition: Annotated[
        str | None,
        typer.Option(
            help="The first layer of each stage, and the number of layers, as 0,12,32; default: "
            "balanced by arithmetic."
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Loss and perplexity of a causal language model on a text, over pipeline stages.

    Starts its own processes on this machine, or runs as one rank of a job under torchrun. Without
    --max-windows, all of the text is evaluated; how long that takes is said after the first ones.

    Examples:
      pipeval --model smollm2 --text FILE --stages 2
      torchrun --nproc-per-node 2 -m runtime --model DIRECTORY --stages 2

    Exit status: 0 done; 1 the run or its verification failed; 2 bad input; 130 interrupted.
    """
    if version:
        typer.echo(__version__)
        raise typer.Exit
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
    if version:
        typer.echo(__version__)
        return
    started, style = time.time(), style_for(sys.stderr, quiet=quiet)
    display = Display("none" if style == "lines" else style)  # bad input is one line
    display.phase("importing torch")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a lost store is no page of C++ frames
    require_installed()
    # Here, not above: torch takes seconds to import, which --help need not.
    with others_on_stderr(), uncollected():
        from runtime.language.perplexity.job import Job
        from runtime.language.perplexity.order import order_of

    def job() -> Job:
        found = launched_process()
        order = order_of(schedule, plan, stages, ranks, found.processes if found else 0)
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
            threads=cores_of_process(order.ranks) if threads is None else threads,
            verify=verify,
            timeout=timeout,
            cuda_graphs=cuda_graphs,
            check_finite=check_finite,
            progress=style,
            record=record,
            started=started,
            chat_template=chat_template,
            bos=bos,
            stride=stride,
            record_field=field,
            per_document=per_document,
            per_token=per_token,
            resume=resume,
            partition=None if partition is None else _boundaries(partition),
            command=tuple(sys.argv[1:]),
        )

    raise typer.Exit(_run(job, display, as_json=as_json))


def _boundaries(text: str) -> tuple[int, ...]:
    try:
        return tuple(map(int, text.split(",")))
    except ValueError:
        raise ValueError(
            f"partition is {text!r}, needed numbers of layers with commas between them"
        ) from None


def _run(make: "Callable[[], Job]", display: Display, *, as_json: bool) -> int:
    with uncollected():
        from runtime.cli.exits import exit_for
        from runtime.distributed.process_group import launched, require_environment
        from runtime.distributed.processes import Terminated, launch
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
            with uncollected():
                preload()
            if launched():
                display.clear()
                running = True
                evaluation = run_rank(job)  # a signal ends the process: see `runtime.entry`
            else:
                if job.record is not None:
                    require_new(job.record)
                texts = read_texts(job.texts, job.record_field, conversations=job.chat_template)
                starting = Display(job.progress)  # what follows is no bad input, of one line
                starting.phase(f"starting {job.order}")
                starting.clear()
                running = True
                told = replace(job, read=texts)
                evaluation = launch(job.order.ranks, run_rank, job, first=told, start_method="fork")
    except (Exception, KeyboardInterrupt, Terminated) as error:
        display.clear()
        _end(exit_for(error, running=running))
    if evaluation is None:
        return 0
    with output_kept():
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
