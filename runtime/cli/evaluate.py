"""`pipeval` without a subcommand: evaluate a language model."""

import os
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

import typer

import runtime.cli.options as options
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
    model: options.Model = "smollm2",
    text: options.Text = None,
    field: options.Field = None,
    stages: options.Stages = None,
    schedule: options.Schedule = None,
    ranks: options.Ranks = None,
    plan: options.Plan = None,
    micro_batch_size: options.MicroBatchSize = 1,
    sequence_length: options.SequenceLength = 512,
    max_windows: options.MaxWindows = None,
    documents: options.Documents = "whole",
    bos: options.Bos = None,
    stride: options.Stride = None,
    chat_template: options.ChatTemplate = False,
    separator_id: options.SeparatorId = None,
    dtype: options.Dtype = "float32",
    overlap: options.Overlap = True,
    channels: options.Channels = None,
    threads: options.Threads = None,
    verify: options.Verify = False,
    record: options.Record = None,
    timeout: options.Timeout = 300.0,
    cuda_graphs: options.CudaGraphs = False,
    check_finite: options.CheckFinite = False,
    per_document: options.PerDocument = None,
    per_token: options.PerToken = None,
    resume: options.Resume = None,
    partition: options.Partition = None,
    quiet: options.Quiet = False,
    version: options.Version = False,
    as_json: options.AsJson = False,
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
        _require_alone(context, context.invoked_subcommand)
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


def _require_alone(context: typer.Context, subcommand: str) -> None:
    """Refuse options of evaluating before a subcommand, and processes beside its own."""
    given = [name for name in context.params if _is_given(context, name)]
    if given:
        option = given[0].replace("_", "-")
        raise ValueError(f"--{option} is an option of evaluating, not of a subcommand")
    if others := processes_of_launcher():
        raise LaunchError(
            f"{others[0]} started {others[1]} processes, and {subcommand} is the work of one: "
            "start it without a launcher"
        )


def _boundaries(text: str) -> tuple[int, ...]:
    try:
        return tuple(map(int, text.split(",")))
    except ValueError:
        raise ValueError(
            f"partition is {text!r}, needed numbers of layers with commas between them"
        ) from None


def _run(make: "Callable[[], Job]", display: Display, *, as_json: bool) -> int:
    with uncollected():
        from runtime.cli.exits import Exit, exit_for
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
                outcome = run_rank(job)  # a signal ends the process: see `runtime.entry`
            else:
                if job.record is not None:
                    require_new(job.record)
                job.require_writable()
                texts = read_texts(job.texts, job.record_field, conversations=job.chat_template)
                starting = Display(job.progress)  # what follows is no bad input, of one line
                starting.phase(f"starting {job.order}")
                starting.clear()
                running = True
                told = replace(job, read=texts)
                outcome = launch(job.order.ranks, run_rank, job, first=told, start_method="fork")
    except (Exception, KeyboardInterrupt, Terminated) as error:
        display.clear()
        _end(exit_for(error, running=running))
    if outcome is None:
        return 0
    evaluation = outcome.evaluation
    with output_kept():
        if as_json:
            typer.echo(evaluation.model_dump_json(indent=2))
        else:
            print_report(evaluation)
    if outcome.unwritten:
        _end(Exit(1, outcome.unwritten))
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
