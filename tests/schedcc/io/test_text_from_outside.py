"""Names, keys and paths from outside are shown as they are: no markup, no terminal control."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from schedcc import compile_pipeline
from schedcc.io.plain_text import visible
from tests.support.recordings import BROKEN, CLOSE, lines_of_run, until, write

EVIL = "[/old] [red]\x1b[2J\x1b]0;owned\x07\x9b1A\r\n\u202egpj.exe :smile:"
SHOWN = r"[/old] [red]\x1b[2J\x1b]0;owned\x07\x9b1A\r\n\u202egpj.exe :smile:"
PLAN = compile_pipeline(2, 2)


def require_harmless(*outs: str) -> None:
    for line in "".join(outs).splitlines():
        assert line.isprintable(), line


def plan_file(tmp_path: Path, **fields: Any) -> Path:
    file = tmp_path / f"{EVIL.replace('/', '.')}.json"
    file.write_text(json.dumps({**json.loads(PLAN.model_dump_json()), **fields}))
    return file


@pytest.fixture
def names(tmp_path) -> str:
    """How paths of files made here begin, when they are shown."""
    return f"{tmp_path}/{SHOWN.replace('/', '.')}"


@pytest.mark.parametrize("command", ["check", "show", "simulate"])
def test_a_plan_with_evil_names_is_shown_harmlessly(run, tmp_path, command, names):
    done = run(command, plan_file(tmp_path, schedule=EVIL))
    assert (done.status, done.err) == (0, "")
    require_harmless(done.out)
    if command == "check":
        assert done.out.startswith(f"{names}.json: sound")
    if command == "show":
        assert done.out.startswith(f"{SHOWN} schedule: M = 2 micro-batches")


@pytest.mark.parametrize(
    "fields",
    [
        {EVIL: 1},
        {"format": EVIL},
        {"schedule": [EVIL]},
        {"programs": [{"stage_id": 0, "steps": [[{"op": EVIL}]]}]},
        {"programs": [{"stage_id": 0, EVIL: 0}]},
    ],
)
def test_a_refusal_of_an_evil_file_is_one_harmless_line(run, tmp_path, fields, names):
    for command in ("check", "show", "export"):
        done = run(command, plan_file(tmp_path, **fields))
        assert (done.status, done.out, done.err.count("\n")) == (2, "", 1)
        assert done.err.startswith(f"schedcc: {names}.json: not a plan: ")
        require_harmless(done.err)


@pytest.mark.parametrize("name", [EVIL.replace("/", "."), "no\nwhere.csv", "\udcff"])
def test_a_path_that_does_not_exist_is_one_harmless_line(run, tmp_path, name):
    missing = tmp_path / name
    for arguments in (
        ("check", missing),
        ("postmortem", missing),
        ("conform", missing, tmp_path),
        ("compile", "-M", 1, "-S", 1, "-o", missing / "plan.json"),
        ("trace", "-M", 1, "-S", 1, "-o", missing / "trace.json"),
    ):
        done = run(*arguments)
        assert (done.status, done.out, done.err.count("\n")) == (2, "", 1)
        require_harmless(done.err)
        assert visible(missing) in done.err


def test_a_recording_with_evil_texts_is_shown_harmlessly(run, tmp_path):
    directory = tmp_path / EVIL.replace("/", ".")
    error = {**BROKEN, "kind": EVIL, "message": EVIL, "traceback": f"Traceback\n\t{EVIL}\n"}
    lines = lines_of_run(PLAN, 0)
    fields = {"device": EVIL, "host": EVIL, "pipeline": EVIL, "clock": EVIL}
    write(directory, 0, 2, [*until(lines, 1, 0), error, {"event": EVIL}], **fields)
    write(directory, 1, 2, [*lines_of_run(PLAN, 1), CLOSE], device=EVIL)
    os.replace(directory / "rank_00001.jsonl", directory / "rank_\x1b[2J\n1.jsonl")
    file = tmp_path / "plan.json"
    file.write_text(PLAN.model_dump_json())
    shown = run("postmortem", directory)
    assert shown.status == 1
    assert "[/old] [red]\\x1b[2J\\x1b]0;owned\\x07\\x9b1A" in shown.out
    require_harmless(shown.out.replace("\t", ""), shown.err)
    for done in (
        run("conform", file, directory),
        run("trace", directory, "-o", tmp_path / f"{EVIL.replace('/', '.')}.trace"),
    ):
        assert done.err == ""
        require_harmless(done.out)
