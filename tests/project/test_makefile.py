"""`make help` knows all targets."""

import re
import subprocess

from tests.support.paths import ROOT


def test_help_lists_every_target_with_a_sentence_that_fits_the_terminal():
    done = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    listed = re.findall(r"^  (\S+) +(\S.*)$", done.stdout, re.MULTILINE)
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None
    assert sorted(name for name, _ in listed) == sorted(phony[1].split())
    assert max(map(len, done.stdout.splitlines())) <= 100
