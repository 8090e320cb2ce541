"""Processes that begin with everything imported: forks of one server, which imported it once."""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import pytest

from runtime.cli import main
from runtime.cli.evaluate import WORKERS_IMPORT
from runtime.distributed.processes import launch

PATIENCE = 240.0
"""Seconds after which a program that has not ended hangs, for the tests."""

Argument = TypeVar("Argument")
Result = TypeVar("Result")


@contextmanager
def without_gpus() -> Iterator[None]:
    """Processes that are started here see none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield


def forks() -> ForkServerContext:
    """Starts processes; the server begins with the first use, and ends with this process."""
    context = multiprocessing.get_context("forkserver")
    ours = ("tests.chaos.cluster", "tests.support.workers", "tests.support.forks")
    context.set_forkserver_preload([*ours, *WORKERS_IMPORT])
    with without_gpus():
        forkserver.ensure_running()
    return context


def launch_forks(
    processes: int, function: Callable[[Argument], Result], argument: Argument
) -> Result:
    """`launch`, for what is neither about GPUs nor about how processes start."""
    forks()
    with without_gpus():
        return launch(processes, function, argument, start_method="forkserver")


def pipeval(
    *options: object, stdin: str = "", environment: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run `pipeval`, in processes that need not import torch and transformers first.

    Args:
        options: Of the command line.
        stdin: What it can read from standard input.
        environment: Variables beside those of this process.
    """
    words = [*map(str, options)]
    with TemporaryDirectory() as folder:
        streams = [Path(folder, name) for name in ("in", "out", "err")]
        streams[0].write_text(stdin)
        variables = {**os.environ, **(environment or {})}
        process = forks().Process(target=_pipeval, args=(words, streams, variables))
        process.start()
        process.join(PATIENCE)
        if process.exitcode is None:
            process.kill()
            raise AssertionError(f"pipeval {words} has not ended; {streams[2].read_text()}")
        out, err = (stream.read_text() for stream in streams[1:])
        return subprocess.CompletedProcess(words, process.exitcode, out, err)


def _pipeval(words: list[str], streams: list[Path], variables: dict[str, str]) -> None:
    for number, stream in enumerate(streams):
        descriptor = os.open(stream, os.O_RDWR | os.O_CREAT)
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(variables)
    sys.stdin = os.fdopen(0)
    sys.argv = ["pipeval", *words]
    main()
