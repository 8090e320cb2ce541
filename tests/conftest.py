"""Settings of all tests, and fixtures that several files use."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

from schedcc.cli import main
from schedcc.testing.plans import pipeline
from tests.support.command_line import Run

# Machines are shared: how long one example takes says nothing about the code. Corners are examples
# of their own (`at_corners`), and `make mutants` and `make fuzz` draw as many more as one likes.
settings.register_profile("shared", deadline=None, max_examples=30)
settings.load_profile("shared")

# torch asks a name server who 127.0.0.1 is, for every connection to a store; where it does not
# answer, a second is enough to wait for it, and the default is five.
os.environ.setdefault("RES_OPTIONS", "timeout:1 attempts:1")


@pytest.fixture
def run(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("FORCE_COLOR", raising=False)

    def command(*arguments: object) -> Run:
        monkeypatch.setattr(sys, "argv", ["schedcc", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return Run(ended.value.code, *capsys.readouterr())

    return command


@pytest.fixture
def unsound(tmp_path) -> Path:
    file = tmp_path / "unsound.json"
    file.write_text(pipeline("L0 F0", "R0 L0 F0").model_dump_json())
    return file
