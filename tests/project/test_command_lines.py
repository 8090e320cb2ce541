"""What both command lines do with their words, and with standard output."""

import json
import os
import subprocess
import sys

import pytest

from runtime.cli import main
from runtime.distributed.processes import launch

NOISE = """
import ctypes, json, os, subprocess, sys
from runtime.cli.output import others_on_stderr

kept = sys.stdout  # as libraries keep it that configure their logging early
with others_on_stderr():
    print("by print")
    os.write(1, b"by descriptor\\n")
    ctypes.CDLL(None).puts(b"by C, which keeps it back")
    subprocess.run(["echo", "by a child"], check=True)
    kept.write("by what was kept\\n")
print(json.dumps("ours"))
"""


def test_nobody_else_prints_on_standard_output():
    environment = {name: v for name, v in os.environ.items() if name != "PYTHONUNBUFFERED"}
    words = [sys.executable, "-c", NOISE]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=60, check=True, env=environment
    )
    assert json.loads(done.stdout) == "ours"
    for way in ("print", "descriptor", "C, which", "a child", "what was kept"):
        assert f"by {way}" in done.stderr


def noise(_: None) -> str:
    print("printed")
    os.write(1, b"written\n")
    return os.environ["RANK"]


def test_processes_of_a_run_print_on_standard_error(capfd):
    assert launch(1, noise, None) == "0"
    out, errors = capfd.readouterr()
    assert out == ""
    assert "printed" in errors
    assert "written" in errors


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["--stages", "2", "-S", "3"], "--stages"),
        (["--json", "--json"], "--json"),
        (["--overlap", "--no-overlap"], "--overlap"),
        (["inspect", "x", "--verify", "--verify"], "--verify"),
        (["convert", "x", "y", "--to", "hf", "--to=layers"], "--to"),
    ],
)
def test_an_option_with_room_for_one_value_is_given_once(words, name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pipeval", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"pipeval: {name} is given 2 times, needed once at most\n"


def test_options_of_the_compiler_are_given_once_as_well(run):
    ended = run("compile", "-M", 4, "-S", 2, "--micro-batches", 8)
    assert (ended.status, ended.out) == (2, "")
    assert ended.err == "schedcc: --micro-batches is given 2 times, needed once at most\n"


@pytest.mark.parametrize("words", [["inspect", "x"], ["convert", "x", "y"]])
def test_what_is_the_work_of_one_process_is_not_done_by_several(words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pipeval", *words])
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "3")
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = f"Open MPI (OMPI_COMM_WORLD_SIZE) started 4 processes, and {words[0]} is the work of one"
    assert capsys.readouterr().err.startswith(f"pipeval: {said}")
