"""The command as a process: what it is given and what takes its output may be anything."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import schedcc
from schedcc.io import bounded
from schemas import json_schemas
from tests.support.command_line import module
from tests.support.paths import ROOT

COMMAND = [sys.executable, "-m", "schedcc"]


def piped(
    *arguments: str, stdin: bytes | None = None, stdout: object = subprocess.PIPE
) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        [*COMMAND, *arguments],
        input=stdin,
        stdout=stdout,  # type: ignore[call-overload]
        stderr=subprocess.PIPE,
        timeout=60,
        cwd=ROOT,
        check=False,
    )


@pytest.mark.parametrize("arguments", ["check -", "show -", "simulate -", "export -", "trace - -o"])
def test_a_plan_may_come_through_standard_input(arguments, tmp_path):
    plan = schedcc.compile_pipeline(3, 2).model_dump_json().encode()
    words = [*arguments.split(), *[str(tmp_path / "t.json")][: arguments.startswith("trace")]]
    done = piped(*words, stdin=plan)
    assert (done.returncode, done.stderr) == (0, b"")
    if words[0] == "check":
        assert done.stdout.startswith(b"standard input: sound (")


def test_what_comes_through_standard_input_and_is_no_plan_is_said_so():
    done = piped("check", "-", stdin=b"[]")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == (b"schedcc: standard input: not a plan: found [], needed a JSON object\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    "arguments", ["check -M 2 -S 2", "compile -M 2 -S 2", "show -M 2 -S 2", "simulate -M 2 -S 2"]
)
def test_output_that_cannot_be_written_is_one_sentence_and_status_2(arguments):
    with open("/dev/full", "wb") as full:
        done = piped(*arguments.split(), stdout=full)
    assert done.returncode == 2
    assert done.stderr == (b"schedcc: standard output cannot be written: No space left on device\n")


def test_a_reader_that_goes_away_is_no_fault():
    process = subprocess.Popen(
        [*COMMAND, "compile", "-M", "3000", "-S", "8"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.wait(timeout=60)


START = "import schedcc.entry; print(flush=True); schedcc.entry.main()"


@pytest.mark.parametrize("seconds", [0.05, 0.15, 0.3, 0.6])
def test_an_interruption_at_any_moment_leaves_no_traceback(seconds, tmp_path):
    waiting = tmp_path / "waits"
    os.mkfifo(waiting)
    process = subprocess.Popen(
        [sys.executable, "-c", START, "check", str(waiting)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(seconds)  # any moment: in the imports, or in front of the file that never comes
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, b"")


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs /dev/zero")
@pytest.mark.parametrize("name", ["plan.json", "plan.csv"])
def test_a_file_without_end_is_not_read_to_its_end(run, tmp_path, monkeypatch, name):
    endless = tmp_path / name
    endless.symlink_to("/dev/zero")
    monkeypatch.setattr(bounded.read_bounded, "__defaults__", (2**20,))
    done = run("check", endless)
    sentence = f"schedcc: {endless}: holds more than 1,048,576 bytes, needed no more\n"
    assert done == (2, "", sentence)


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_shows_examples_and_exit_statuses(option, run):
    done = module(option)
    assert done.returncode == 0
    assert "schedcc compile -M 8 -S 4" in done.stdout
    assert "130 interrupted" in " ".join(done.stdout.split())
    for command in ("compile", "show", "check", "simulate", "compare", "trace", "conform"):
        assert "Example" in run(command, option).out


def test_costs_come_from_a_file_and_options_go_before_it(run, tmp_path):
    file = tmp_path / "costs.json"
    costs = schedcc.Costs(forward=(1, 2), transfer=(0.5,), load=0.25, collective=0.5)
    file.write_text(costs.model_dump_json())
    shown = run("simulate", "-M", 3, "-S", 2, "--costs", file, "--json")
    plan = schedcc.compile_pipeline(3, 2)
    assert schedcc.Timeline.model_validate_json(shown.out) == schedcc.simulate(plan, costs)
    shown = run("simulate", "-M", 3, "-S", 2, "--costs", file, "--forward", "3", "--json")
    changed = costs.model_copy(update={"forward": 3.0})
    assert schedcc.Timeline.model_validate_json(shown.out) == schedcc.simulate(plan, changed)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("[", "not JSON: EOF while parsing a list at line 1 column 1"),
        ("[]", "not costs: the document is [], needed an object"),
        ('{"forward": [1, -1]}', "not costs: forward[1] is -1, needed at least 0.0"),
        ('{"load": "x"}', "not costs: load is 'x', needed a valid number, unable to parse string"),
        ('{"backward": 1}', "not costs: backward is not a key that belongs there"),
        ('{"load": 1, "load": 2}', "not JSON: the key 'load' stands twice in one object"),
    ],
)
def test_costs_that_are_none_are_one_sentence(run, tmp_path, content, complaint):
    file = tmp_path / "costs.json"
    file.write_text(content)
    done = run("simulate", "-M", 3, "-S", 2, "--costs", file)
    assert (done.status, done.out, done.err.count("\n")) == (2, "", 1)
    assert done.err.startswith(f"schedcc: {file}: {complaint}")


def test_a_step_barrier_is_simulated(run):
    # Step by step: 1, 0.5 + 1, three times two transfers and the slowest forward, 0.5 + 3.
    words = ("simulate", "-M", 4, "-S", 3, "--forward", "1,1,3", "--transfer", "0.5")
    assert run(*words, "--step-barrier").out.startswith("M = 4 micro-batches, S = 3 stages: 18 s")
    assert run(*words).out.startswith("M = 4 micro-batches, S = 3 stages: 17 s")


def test_compare_prints_the_comparison_as_json(run):
    done = run("compare", "-M", 4, "-S", 3, "--transfer", 0.25, "--json")
    schema = json_schemas.FORMATS["comparison.schema.json"]
    found = schema.model_validate_json(done.out)  # type: ignore[union-attr]
    assert [s.name for s in found.schedules][-1] == "training, 1F1B"
    plan = schedcc.compile_pipeline(4, 3, overlap=True)
    timeline = schedcc.simulate(plan, schedcc.Costs(transfer=0.25))
    assert found.schedules[1].makespan == timeline.makespan
    assert found.schedules[1].bubble == timeline.bubble
    assert found.schedules[2].makespan is None


def test_trace_does_not_overwrite_what_nobody_named(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("trace", "-M", 2, "-S", 2).status == 0
    again = run("trace", "-M", 2, "-S", 2)
    complaint = "schedcc: trace.json is there already, needed -o FILE to name the file\n"
    assert again == (2, "", complaint)
    assert run("trace", "-M", 2, "-S", 2, "-o", "trace.json").status == 0


@pytest.mark.parametrize("suffix", [".json", ".csv"])
def test_a_byte_order_mark_is_read_over(run, tmp_path, suffix):
    plan = schedcc.compile_pipeline(3, 2)
    file = tmp_path / f"plan{suffix}"
    text = plan.model_dump_json() if suffix == ".json" else run("export", "-M", 3, "-S", 2).out
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert run("check", file).status == 0
