"""The examples do what their docstrings say, and are short."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.support.forks import Program
from tests.support.launchers import Launcher
from tests.support.paths import ROOT

EXAMPLES = ROOT / "examples"
PROGRAMS = sorted(file.name for file in EXAMPLES.glob("*.py") if file.name != "demo.py")


def run_example(words: tuple[object, ...]) -> None:
    sys.argv = [*map(str, words)]
    runpy.run_path(str(EXAMPLES / sys.argv[0]), run_name="__main__")


def ended(program: Program) -> str:
    done = program.ended()
    assert done.returncode == 0, done.stderr
    return done.stdout


def under_torchrun(name: str, processes: int) -> list[str]:
    """What each process prints, with the environment that torchrun gives it."""
    launcher = Launcher(processes)
    programs = [
        Program(run_example, (name,), environment=launcher.environment(rank))
        for rank in range(processes)
    ]
    return [ended(program) for program in programs]


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_is_short_and_says_how_to_run_it_and_what_it_prints(name):
    text = (EXAMPLES / name).read_text()
    docstring = text.split('"""')[1]
    assert len(text.splitlines()) < 60
    assert f"examples/{name}" in docstring
    assert "print" in docstring
    assert f"[{name}]({name})" in (EXAMPLES / "README.md").read_text()


def test_a_first_plan(capsys):
    run_example(("first_plan.py",))
    shown = capsys.readouterr().out
    assert "stage 1, step 2: RecvActivation(micro_batch=1) SendActivation(micro_batch=0)" in shown
    assert shown.endswith("sound: True\nblocking:   99.5 s\noverlapped: 67.75 s\n")


def test_a_broken_plan(capsys):
    run_example(("broken_plan.py",))
    shown = capsys.readouterr().out
    assert shown.startswith("sound: False\n")
    assert "channel: stage 1, step 1: channel 0->1: transfer 1 sends micro-batch 0" in shown


def test_a_schedule_of_ones_own_and_its_picture(capsys, tmp_path):
    run_example(("own_schedule.py", tmp_path / "looped.html"))
    assert capsys.readouterr().out.endswith("sound: True\n")
    assert "looped" in (tmp_path / "looped.html").read_text()


def test_a_property_test_of_it():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(
        [*command, EXAMPLES / "test_own_schedule.py"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout
    assert ".." in done.stdout


def test_an_mlp_on_four_stages():
    *_, last = under_torchrun("mlp.py", 4)
    four, one, same = last.splitlines()[1:]
    assert four.split(": ")[1] == one.split(": ")[1]
    assert same == "same logits, bit for bit: True"


@pytest.mark.slow
def test_replicas_with_metrics():
    first, *others = under_torchrun("replicas.py", 4)
    who, ours, expected = first.splitlines()
    assert who == "<Evaluator replica 0 of 2, rank 0, cpu; stage 0 of 2: layer 0>"
    assert f"{ours} in one process" == expected
    assert others[2] == "<Evaluator replica 1 of 2, rank 1, cpu; stage 1 of 2: layers 1-3>\n"


@pytest.mark.slow
def test_a_language_model():
    shown = ended(Program(run_example, ("language_model.py",))).splitlines()
    perplexity, accuracy = (line.rpartition(" ")[2] for line in shown)
    # Kernels of CPUs differ in the last bits; both are printed with two decimals.
    assert float(perplexity) == pytest.approx(176.56, rel=1e-3)
    assert float(accuracy) == pytest.approx(0.75, rel=1e-3)


@pytest.mark.slow
def test_the_notebook_runs_and_holds_no_outputs(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    book = nbformat.read(EXAMPLES / "notebook.ipynb", as_version=4)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    NotebookClient(book, timeout=120, kernel_name="python3").execute(cwd=str(tmp_path))
    first, report, times, broken, looped, run, same = (cell.outputs for cell in code)
    for picture in (first, looped):
        assert "<iframe" in picture[-1].data["text/html"]
    assert "sound" in report[-1].data["text/html"]
    assert times[-1].text.splitlines()[0].startswith("blocking")
    assert "transfer 1 sends micro-batch 0" in broken[-1].data["text/html"]
    assert "loss 1." in run[-1].text
    assert same[-1].text == "bit for bit: True\n"
