"""What both command lines do with their words, and with standard output."""

import json
import os
import re
import subprocess
import sys

import pytest
from typer.main import get_command

from runtime.cli import app, main
from runtime.distributed.processes import launch
from schedcc.cli import app as compiler_app
from schedcc.cli import main as compiler
from schedcc.schedules import SCHEDULES, SUMMARIES

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


PROGRAMS = {"schedcc": compiler, "pipeval": main}
COMMANDS = [(name, "") for name in PROGRAMS] + [
    (name, command.name)
    for name, app in (("schedcc", compiler_app), ("pipeval", app))
    for command in app.registered_commands
]


@pytest.mark.parametrize(("program", "command"), COMMANDS)
def test_help_shows_all_options_whole_at_80_columns(program, command, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "argv", [program, *filter(None, [command]), "-h"])
    with pytest.raises(SystemExit) as ended:
        PROGRAMS[program]()
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    assert max(map(len, shown.splitlines())) <= 80
    group = get_command(compiler_app if program == "schedcc" else app)
    for parameter in (group.commands[command] if command else group).params:
        for name in parameter.opts if parameter.param_type_name == "option" else ():
            assert re.search(rf"^  .*{re.escape(name)}\b", shown, re.MULTILINE), name
    assert re.search(rf"^  Examples?:\n    .*{program} {command}", shown, re.MULTILINE)
    assert "..." not in shown.partition("Commands:")[2], "a sentence is cut off"


@pytest.mark.parametrize(
    ("program", "words", "expected"),
    [
        ("schedcc.entry", "schedcc s", "schedules show simulate"),
        ("runtime.entry", "pipeval inspect --st", "--stages"),
    ],
)
def test_shells_can_complete_commands_and_options(program, words, expected):
    name, *rest = words.split()
    shell = {f"_{name.upper()}_COMPLETE": "complete_bash", "COMP_WORDS": words}
    start = f"import sys, {program}; sys.argv = ['{name}']; {program}.main()"
    done = subprocess.run(
        [sys.executable, "-c", start],
        env={**os.environ, **shell, "COMP_CWORD": str(len(rest))},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.split() == expected.split()


def test_every_schedule_that_ships_is_listed_with_the_name_that_others_use(run):
    assert list(SUMMARIES) == [schedule.name for schedule in SCHEDULES]
    shown = run("schedules").out
    assert all(name in shown for name in SUMMARIES)
    assert "GPipe's fill and drain" in shown
