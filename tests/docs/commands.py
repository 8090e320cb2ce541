"""Runs the commands of a page: ours in this process or in forks of one that has imported all."""

import io
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Sequence
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest

from schedcc.cli import main as schedcc
from tests.support.forks import Program, run_pipeval
from tests.support.harness_tasks import OF_OWN_TASKS
from tests.support.launchers import Launcher

PATIENCE = 60
"""Seconds for a command of the system."""

ENVIRONMENT = {"COLUMNS": "100", "NO_COLOR": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
"""A page is as wide as this terminal, and has no network to fetch a model or data from."""

_SHELL = re.compile(r"[|<>;&*$]")
_TORCHRUN = re.compile(r"torchrun --nproc-per-node (\d+) (.*)", re.DOTALL)


class Ended(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str


def run(command: str, folder: Path) -> Ended:
    """Run a command as a shell in this folder would.

    `schedcc` runs in this process; `pipeval`, `python` and `torchrun` in forks, which need not
    import torch first; everything else in a shell.
    """
    launched = _TORCHRUN.fullmatch(command)
    name, *words = shlex.split(launched[2] if launched else command)
    if launched:
        return _forked(name, words, folder, int(launched[1]))
    if name == "lm_eval":  # the same command, which a fork need not import anew
        name, words = "python", ["-m", OF_OWN_TASKS, *words]
    if _SHELL.search(command) or name not in ("schedcc", "pipeval", "python"):
        return _in_shell(command, folder)
    return _schedcc(words, folder) if name == "schedcc" else _forked(name, words, folder, 0)


def _schedcc(words: Sequence[str], folder: Path) -> Ended:
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, chdir(folder):
        patch.setattr(sys, "argv", ["schedcc", *words])
        for variable, value in ENVIRONMENT.items():
            patch.setenv(variable, value)
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
            schedcc()
    return Ended(int(ended.value.code or 0), out.getvalue(), err.getvalue())


def _forked(name: str, words: Sequence[str], folder: Path, processes: int) -> Ended:
    """Run `python` or `pipeval`, or as many processes of a launcher (0: without one)."""
    work = (str(folder), [name, *words])
    programs = []
    launcher = Launcher(processes) if processes else None
    for rank in range(max(processes, 1)):
        variables = {**ENVIRONMENT, "HF_DATASETS_CACHE": str(folder / ".datasets")}
        if launcher is not None:
            variables |= launcher.environment(rank)
        programs.append(Program(run_program, work, environment=variables))
    ended = [program.ended() for program in programs]
    statuses = [done.returncode for done in ended]
    return Ended(
        max(statuses),
        *("".join(x) for x in zip(*((d.stdout, d.stderr) for d in ended), strict=True)),
    )


def run_program(work: tuple[str, Sequence[str]]) -> None:
    """The program itself, in a fork."""
    folder, (name, *words) = work
    os.chdir(folder)
    sys.path.insert(0, folder)
    if name == "pipeval":
        run_pipeval(words)
    elif name == "-m":
        sys.argv = words
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    else:
        words = words if name == "python" else [name, *words]
        if words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            runpy.run_path(words[0], run_name="__main__")


def _in_shell(command: str, folder: Path) -> Ended:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env={**os.environ, **ENVIRONMENT, "PATH": path, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)
