"""Runs the fuzzers as a program, whose address space is bounded."""

import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from tests.support.paths import ROOT


def ends_of(kinds: Iterable[str], folder: Path, *options: str) -> dict[str, dict[str, int]]:
    """How files of some kinds ended, by kind: how often each way. None breaks a promise.

    Args:
        kinds: Names in `tests.tools.fuzz.kinds.KINDS`.
        folder: Where it runs.
        options: Of `python -m tests.tools.fuzz`.
    """
    words = [word for kind in kinds for word in ("--kind", kind)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.tools.fuzz", *words, *options],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return {
        kind: {how: int(number) for number, how in re.findall(r"(\d+) ([a-z0-9 ]+)", said)}
        for kind, said in re.findall(r"^(\w+): \d+ files: (.*?);", done.stdout, re.MULTILINE)
    }
