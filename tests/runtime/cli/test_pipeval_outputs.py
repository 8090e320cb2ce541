"""Scores and results that `pipeval` cannot write: said in time, and nothing else is lost."""

import os
import resource
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from runtime.cli import main
from runtime.cli.exits import exit_for
from runtime.distributed.processes import WorkerError
from runtime.language.perplexity.job import RESULTS
from schemas import DocumentScore, LanguageModelEvaluation
from tests.support.forks import Program, pipeval, run_pipeval
from tests.support.tiny_models import saved_llama


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    folder = tmp_path_factory.mktemp("outputs")
    text = folder / "text\udcff.txt"
    text.write_text("ab ab 12 cd the quick brown fox jumps over the lazy dog " * 20)
    options = ["--model", saved_llama(folder / "model"), "--text", text, "--quiet"]
    return [*options, "--sequence-length", 16, "--threads", 1, "--stages", 1]


def test_a_result_is_printed_though_its_scores_cannot_be_written(usual, tmp_path):
    documents = tmp_path / "documents.jsonl"
    outputs = ["--per-token", "/dev/full", "--per-document", documents]
    done = pipeval(*usual, *outputs, "--json")
    said = "pipeval: /dev/full cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, said)
    found = LanguageModelEvaluation.model_validate_json(done.stdout)
    score = DocumentScore.model_validate_json(documents.read_text())
    assert score.loss == found.loss
    assert score.name == found.text
    assert found.text.endswith(r"text\udcff.txt")


def test_a_launcher_is_told_of_it_before_the_model_is_loaded_too(usual):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    where = {"RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    sizes = {"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    loud = [option for option in usual if option != "--quiet"]
    done = pipeval(*loud, "--per-token", "/proc/file", environment=where | sizes)
    said = "pipeval: /proc/file cannot be written: No such file or directory"
    lines = ["pipeval: reading and tokenizing the text", said]
    assert (done.returncode, done.stderr.splitlines()) == (2, lines)


def with_little_room(options: Sequence[object]) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    run_pipeval(options)


def test_a_disk_that_is_full_in_the_midst_of_a_run_is_a_run_that_failed(usual, tmp_path):
    results = ["--resume", tmp_path / "results"]
    done = Program(with_little_room, [*usual, *results]).ended()
    said = f"pipeval: {tmp_path}/results/{RESULTS} cannot be written: File too large\n"
    assert (done.returncode, done.stderr) == (1, said)
    again = pipeval(*usual, *results, "--json")
    assert again.returncode == 0, again.stderr
    assert LanguageModelEvaluation.model_validate_json(again.stdout).resumed_micro_batches > 0


def test_errors_before_the_run_and_in_it_have_statuses_of_their_own():
    for kind, status in (("ResumeError", 2), ("OutputError", 2), ("ResultsEndError", 1)):
        error = type(kind, (ValueError,), {})("a line")
        assert exit_for(error, running=True) == (status, "a line", "")
        assert exit_for(WorkerError("m", kind, "a line", "trace"), running=True) == (
            status,
            "a line",
            "",
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--per-document", "same", "--per-token", "./same"], "--per-document and --per-token are"),
        (["--per-token", "text"], "--text and --per-token are both text, needed two files"),
        (["--resume", ".", "--per-token", RESULTS], "--resume and --per-token are both"),
        (["--per-document", "no\nsuch/file"], r"no\nsuch/file cannot be written, needed a file"),
        (["--per-document", "/proc/file"], "/proc/file cannot be written: No such file"),
        (["--record", "text\n"], r"text\n is no directory"),
    ],
)
def test_files_that_cannot_be_written_are_refused_before_the_run(
    usual, options, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    for name in ("text", "text\n"):
        Path(name).write_text("ab ab 12 cd")
    options = [*map(str, usual[:2]), "--text", "text", "--sequence-length", "16", *options]
    monkeypatch.setattr(sys, "argv", ["pipeval", *options])
    with pytest.raises(SystemExit) as ended:
        main()
    error = capsys.readouterr().err
    assert (ended.value.code, error.count("\n")) == (2, 1)
    assert message in error
    assert sorted(os.listdir()) == ["text", "text\n"]
    assert Path("text").read_text() == "ab ab 12 cd"
