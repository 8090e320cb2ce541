"""Edited files of models end as their readers say; see `tests/tools/fuzz_models.py`."""

import re
import subprocess
import sys
from pathlib import Path

from tests.support.paths import ROOT
from tests.tools.fuzz_models import READERS, seeds


def test_edited_files_of_models_are_read_or_refused_within_bounded_memory(tmp_path):
    """In a process of its own, whose address space is bounded."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.tools.fuzz_models", "--number", "800", "--seed", "7"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    counts = {(f, how): int(n) for f, how, n in re.findall(r"(\S+) (\w+): (\d+)", done.stdout)}
    assert sum(counts.values()) == 800
    assert {file for file, _ in counts} == set(READERS)
    assert len(counts) == 2 * len(READERS)  # the edits leave some of each whole


def test_what_is_edited_is_read(tmp_path: Path):
    for name, seed in seeds().items():
        (tmp_path / name).write_bytes(seed.content)
        READERS[name](tmp_path / name)
