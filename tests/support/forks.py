"""Processes that begin with everything imported: forks of one server, which imported it once."""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any, TypeVar

import pytest

from runtime.cli import main
from runtime.cli.evaluate import WORKERS_IMPORT
from runtime.distributed.processes import launch

PATIENCE = 300.0
"""Seconds after which a program that has not ended hangs, for the tests."""

Argument = TypeVar("Argument")
Result = TypeVar("Result")


@contextmanager
def without_gpus() -> Iterator[None]:
    """Processes that are started here see none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield


@cache
def forks() -> ForkServerContext:
    """Starts processes at once; the server begins with the first use, and ends with this one."""
    context = multiprocessing.get_context("forkserver")
    ours = ("tests.chaos.cluster", "tests.support.workers", "tests.support.forks")
    context.set_forkserver_preload([*ours, *WORKERS_IMPORT])
    with without_gpus():
        forkserver.ensure_running()
        first = context.Process(target=int)  # which begins when all is imported
        first.start()
        first.join(PATIENCE)
    return context


def launch_forks(
    processes: int, function: Callable[[Argument], Result], argument: Argument
) -> Result:
    """`launch`, for what is neither about GPUs nor about how processes start."""
    forks()
    with without_gpus():
        return launch(processes, function, argument, start_method="forkserver")


class Program:
    """A function that runs as a program: it has streams, an environment and an exit status.

    Like all processes here, it sees no GPU.
    """

    def __init__(
        self,
        function: Callable[[Any], Any],
        argument: Any,
        *,
        stdin: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start `function(argument)`.

        Args:
            function: What a new process can import.
            argument: Its picklable argument.
            stdin: What it can read from standard input.
            environment: Variables beside those of this process.
        """
        self._folder = Path(mkdtemp())
        self._streams = [self._folder / name for name in ("in", "out", "err")]
        self._streams[0].write_text(stdin)
        variables = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **(environment or {})}
        work = (function, argument, self._streams, variables)
        self._process = forks().Process(target=_run, args=work)
        self._process.start()

    def ended(self) -> "subprocess.CompletedProcess[str]":
        """What became of it, as `subprocess.run` says it."""
        self._process.join(PATIENCE)
        hangs = self._process.exitcode is None
        self._process.kill()
        out, err = (stream.read_text() for stream in self._streams[1:])
        rmtree(self._folder)
        assert not hangs, err
        return subprocess.CompletedProcess([], self._process.exitcode or 0, out, err)


def pipeval(*options: object, **settings: Any) -> "subprocess.CompletedProcess[str]":
    """Run `pipeval`, which need not import torch and transformers first."""
    return Program(run_pipeval, options, **settings).ended()


def run_pipeval(options: Sequence[object]) -> None:
    """The program itself."""
    sys.argv = ["pipeval", *map(str, options)]
    main()


def _run(
    function: Callable[[Any], Any], argument: Any, streams: list[Path], variables: dict[str, str]
) -> None:
    for number, stream in enumerate(streams):
        descriptor = os.open(stream, os.O_RDWR | os.O_CREAT)
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(variables)
    sys.stdin = os.fdopen(0)
    function(argument)
