"""One row in processes of its own, with a time limit: what it breaks, no other row sees."""

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from benchmarks.gpu.context import Context
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.ranks import LeftOut
from benchmarks.gpu.report import Found, Result
from benchmarks.gpu.rows import ROWS, Row

ENVIRONMENT = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "TORCH_CPP_LOG_LEVEL": "ERROR"}
"""Products have the same bits on every stream
(https://docs.nvidia.com/cuda/cublas/#results-reproducibility)."""
LAST_WORDS = 300
"""Characters of what a process that failed has printed."""


def answered(row: Row, context: Context) -> Result:
    """Ask in this process."""
    began = time.perf_counter()
    try:
        found, status = row.ask(context), ""
    except LeftOut as error:
        found, status = Found(True, [str(error)]), "left out"
    except Exception as error:
        traceback.print_exc()
        text = (str(error) or "no text").splitlines()[0]
        found, status = Found(False, [f"{type(error).__name__}: {text}"]), "failed"
    status = status or ("held" if found.held else "did not hold")
    seconds = time.perf_counter() - began
    return Result(row.number, row.title, status, seconds, found.lines, found.numbers)


def asked_alone(row: Row, folder: Path, limit: float, *, dry: bool) -> Result:
    """Ask in a process of its own, which is ended with all that it has started.

    Args:
        row: The question.
        folder: Where the rows write.
        limit: Seconds.
        dry: Whether to ask the CPU.
    """
    answer = folder / f"row-{row.number}.json"
    answer.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.gpu", "--row", str(row.number)]
    command += ["--output", str(folder), *(["--dry"] if dry else [])]
    began = time.perf_counter()
    with (folder / f"row-{row.number}.log").open("w+") as log:
        process = subprocess.Popen(
            command,
            env={**os.environ, **ENVIRONMENT},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            process.wait(limit)
            status = "failed"
        except subprocess.TimeoutExpired:
            status = "out of time"
        finally:
            _end(process)
        seconds = time.perf_counter() - began
        if answer.exists():
            return Result(**json.loads(answer.read_text()))
        log.seek(0)
        last = log.read().strip()[-LAST_WORDS:].splitlines()
    lines = [f"after {seconds:.0f} s", *last]
    return Result(row.number, row.title, status, seconds, lines)


def answer_alone(number: int, folder: Path, *, dry: bool) -> None:
    """What the process of one row does."""
    row = next(row for row in ROWS if row.number == number)
    result = answered(row, Context(Machine(dry), folder))
    (folder / f"row-{number}.json").write_text(json.dumps(asdict(result)))


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the session of a row: ranks that are stopped end no other way."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
