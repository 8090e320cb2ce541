"""Running `schedcc` as a user does."""

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple


class Run(NamedTuple):
    status: int
    out: str
    err: str


def module(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "schedcc", *arguments]
    root = Path(__file__).parents[2]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, cwd=root
    )
