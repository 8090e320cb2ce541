"""Edited files and messages end as their readers say; see `tests/tools/fuzz/`."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.fuzzing import ends_of
from tests.tools.fuzz import __main__ as fuzz
from tests.tools.fuzz.kinds import KINDS, refused

QUICK = [name for name, listed in KINDS.items() if listed.module not in ("commands", "described")]
"""Those for which transformers builds no model and no tokenizer."""


@pytest.mark.slow
def test_edited_files_are_read_or_refused_within_bounded_memory(tmp_path):
    """In a process of its own, whose address space is bounded."""
    ends = ends_of(QUICK, tmp_path, "--number", "60", "--seed", "24")
    assert set(ends) == set(QUICK)
    for kind, counts in ends.items():
        assert sum(counts.values()) == 60
        assert "refused" in counts, kind
        assert len(counts) > 1, kind  # of this seed, the edits leave some of each whole


@pytest.fixture
def commands(monkeypatch) -> list[list[str]]:
    """The commands of processes that leave a file in their folder, and crash."""
    given: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        given.append(command)
        (Path(command[command.index("--folder") + 1]) / "read").touch()
        return subprocess.CompletedProcess(command, -signal.SIGSEGV)

    monkeypatch.setattr(subprocess, "run", run)
    return given


def test_processes_have_the_options_and_their_files_outlive_crashes(
    tmp_path, monkeypatch, capsys, commands
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "temporary").mkdir()
    words = ["--jobs", "2", "--kind", "plan", "--seed", "5", "--folder", "temporary", "--verbose"]
    monkeypatch.setattr(sys, "argv", ["fuzz", *words])
    for _ in range(2):  # the second finds the folder of the first
        assert fuzz.main() == 1
    for command in commands:
        options = dict(zip(command[3:-1:2], command[4::2], strict=True))
        assert command[-1] == "--verbose"
        assert (options["--kind"], options["--seed"]) == ("plan", "5")
        assert Path(options["--folder"]).parent.samefile("temporary")
    kept = re.findall(r"plan: Segmentation fault; see (.*)", capsys.readouterr().err)
    assert kept[0] == str(tmp_path / "fuzz-plan-5-crash")
    assert all(Path(folder, "read").is_file() for folder in kept)
    assert len(set(kept)) == 2
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.parametrize(
    ("message", "wrong"),
    [("two\nlines", "no line"), ("\x1b[2J", "no line"), ("", "0 characters"), ("a" * 2000, "2000")],
)
def test_a_message_that_is_no_sentence_is_seen(message, wrong):
    assert refused(ValueError("a sentence")) == "refused"
    with pytest.raises(AssertionError, match=wrong):
        refused(ValueError(message))
