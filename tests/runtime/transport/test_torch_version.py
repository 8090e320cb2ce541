"""A torch that is too old is told in one sentence, at the first import of what needs another."""

import subprocess
import sys
import tomllib

from runtime.transport.torch_distributed.groups.torch_version import OLDEST
from tests.support.paths import ROOT

OLD = """
import torch
torch.__version__ = "2.8.0"
import runtime
runtime.Evaluator
"""


def test_the_first_import_of_what_needs_a_newer_torch_says_so():
    done = subprocess.run(
        [sys.executable, "-c", OLD], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: torch 2.8.0 is installed, needed 2.9 or newer")


def test_the_package_asks_for_what_the_code_asks_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"torch>={OLDEST[0]}.{OLDEST[1]}" in project["optional-dependencies"]["runtime"]
