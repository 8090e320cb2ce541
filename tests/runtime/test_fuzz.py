"""Edited files and messages end as their readers say; see `tests/tools/fuzz/`."""

import re
import subprocess
import sys

import pytest

from tests.support.paths import ROOT
from tests.tools.fuzz.kinds import KINDS, refused

QUICK = [name for name, listed in KINDS.items() if listed.module not in ("commands", "described")]
"""Those for which transformers builds no model and no tokenizer."""


@pytest.mark.slow
def test_edited_files_are_read_or_refused_within_bounded_memory(tmp_path):
    """In a process of its own, whose address space is bounded."""
    kinds = [word for name in QUICK for word in ("--kind", name)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.tools.fuzz", *kinds, "--number", "150", "--seed", "7"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    ends = {
        kind: {how: int(number) for number, how in re.findall(r"(\d+) ([a-z0-9 ]+)", said)}
        for kind, said in re.findall(r"^(\w+): \d+ files: (.*?);", done.stdout, re.MULTILINE)
    }
    assert set(ends) == set(QUICK)
    for kind, counts in ends.items():
        assert sum(counts.values()) == 150
        assert "refused" in counts, kind
        assert len(counts) > 1, kind  # the edits leave some of each whole


@pytest.mark.parametrize(
    ("message", "wrong"),
    [("two\nlines", "no line"), ("\x1b[2J", "no line"), ("", "0 characters"), ("a" * 2000, "2000")],
)
def test_a_message_that_is_no_sentence_is_seen(message, wrong):
    assert refused(ValueError("a sentence")) == "refused"
    with pytest.raises(AssertionError, match=wrong):
        refused(ValueError(message))
