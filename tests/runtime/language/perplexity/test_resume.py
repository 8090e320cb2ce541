"""Results that a run goes on from: whole or not there, and of the same job."""

import errno
import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from runtime.language.perplexity.job import RESULTS
from runtime.language.perplexity.resume import (
    ResultLog,
    ResultsEndError,
    ResumeError,
    digest_of_model,
)
from tests.support.forks import Program

JOB = {"dtype": "float32", "text": "a" * 64}
TARGETS = [3, 2, 4]
WEIGHTS = {
    "whole": ("model.safetensors", ["model.safetensors"]),
    "index": ("model.safetensors.index.json", ["1.safetensors", "2.safetensors"]),
    "layers": ("latest", ["tag/layer_01-model_states.pt"]),
}


def losses(number: int) -> torch.Tensor:
    return torch.arange(TARGETS[number]) + number + 0.1


def written(directory: Path, count: int = 3) -> bytes:
    log = ResultLog(directory, JOB, TARGETS)
    for number in range(len(log.finished), count):
        log.append(losses(number))
    log.close()
    return (directory / RESULTS).read_bytes()


def test_what_was_written_is_there_again_bit_for_bit(tmp_path):
    written(tmp_path / "new" / "results", 2)
    log = ResultLog(tmp_path / "new" / "results", JOB, TARGETS)
    assert [found.tolist() for found in log.finished] == [losses(n).tolist() for n in (0, 1)]


def test_a_file_that_ends_anywhere_is_gone_on_with_and_ends_as_if_it_never_had(tmp_path):
    whole = written(tmp_path / "whole")
    lines = [at for at, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole)):
        directory = tmp_path / "cut"
        directory.mkdir(exist_ok=True)
        (directory / RESULTS).write_bytes(whole[:cut])
        log = ResultLog(directory, JOB, TARGETS)
        assert len(log.finished) == max(0, sum(at < cut for at in lines) - 1)
        log.close()
        assert written(directory) == whole


def test_a_changed_byte_in_any_result_is_noticed(tmp_path):
    whole = written(tmp_path)
    first = whole.index(b"\n") + 1
    for at in range(first, len(whole) - 1, 3):
        damaged = bytearray(whole)
        damaged[at] ^= 1
        (tmp_path / RESULTS).write_bytes(damaged)
        with pytest.raises(ResumeError, match="is damaged in line"):
            ResultLog(tmp_path, JOB, TARGETS)


def test_results_of_another_job_are_refused_and_what_differs_is_named(tmp_path):
    written(tmp_path)
    for changes, said in (
        ({"dtype": "float16"}, "whose dtype differs: float32 there, float16 here"),
        ({"text": "b" * 64}, "whose text differs$"),
    ):
        with pytest.raises(ResumeError, match=said):
            ResultLog(tmp_path, JOB | changes, TARGETS)
    (tmp_path / RESULTS).write_text("something\n")
    with pytest.raises(ResumeError, match="holds no results of a run"):
        ResultLog(tmp_path, JOB, TARGETS)


def test_two_runs_cannot_write_to_one_directory(tmp_path):
    log = ResultLog(tmp_path, JOB, TARGETS)
    with pytest.raises(ResumeError, match="is in use by another run"):
        ResultLog(tmp_path, JOB, TARGETS)
    log.close()
    ResultLog(tmp_path, JOB, TARGETS).close()


def test_only_a_lock_that_another_run_holds_is_said_to_be_one(tmp_path, monkeypatch):
    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refused)
    with pytest.raises(ResumeError, match="cannot be locked against other runs: No locks"):
        ResultLog(tmp_path, JOB, TARGETS)


def test_what_cannot_be_read_is_not_said_to_be_in_use(tmp_path, monkeypatch):
    def refused(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    written(tmp_path)
    monkeypatch.setattr(os, "ftruncate", refused)
    with pytest.raises(ResumeError, match=f"{RESULTS} cannot be used: Input/output error$"):
        ResultLog(tmp_path, JOB, TARGETS)


@pytest.mark.parametrize("weights", ["whole", "index", "layers"])
def test_a_model_is_its_configuration_and_weights_and_not_what_lies_beside_them(tmp_path, weights):
    entry, files = WEIGHTS[weights]
    (tmp_path / "config.json").write_text("{}")
    for name in (entry, *files):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("of the model")
    if weights == "index":
        names = dict(enumerate(files))
        (tmp_path / entry).write_text(json.dumps({"weight_map": names}))
    before = digest_of_model(tmp_path)
    for stray in (b".DS_Store", b"scores.jsonl", b"\xff.txt"):
        Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), stray))).write_text("a stray")
    assert digest_of_model(tmp_path) == before
    for name in ("config.json", *files[-1:]):
        (tmp_path / name).write_text("of another one")
        assert digest_of_model(tmp_path) != before
        before = digest_of_model(tmp_path)


def test_results_end_before_a_loss_that_is_none(tmp_path):
    log = ResultLog(tmp_path, JOB, TARGETS)
    for number in range(3):
        log.append(losses(number) * (float("nan") if number == 1 else 1))
    log.close()
    assert len(ResultLog(tmp_path, JOB, TARGETS).finished) == 1


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResumeError, match="results cannot be written to"):
        ResultLog(tmp_path / "file", JOB, TARGETS)


WRITER = """
import sys, torch
from pathlib import Path
from runtime.language.perplexity.resume import ResultLog
log = ResultLog(Path(sys.argv[1]), {}, [500] * 100_000)
for number in range(len(log.finished), 100_000):
    log.append(torch.full((500,), float(number)))
    print(number, flush=True)
"""


def test_a_writer_that_is_killed_loses_nothing_that_it_has_told_of(tmp_path):
    told = -1
    for _ in range(2):
        words = [sys.executable, "-c", WRITER, str(tmp_path)]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as writer:
            first = int(writer.stdout.readline())
            assert first in (told + 1, told + 2)  # written, and killed before it was told
            for _ in range(50):
                told = int(writer.stdout.readline())
            os.kill(writer.pid, signal.SIGKILL)
            told = max([told, *map(int, filter(str.strip, writer.stdout))])
    log = ResultLog(tmp_path, {}, [500] * 100_000)
    assert len(log.finished) in (told + 1, told + 2)
    assert all(float(found[0]) == number for number, found in enumerate(log.finished))


def fill_the_disk(directory: str) -> None:
    """Write results where a file may have no more than some bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
    with pytest.raises(ResultsEndError, match=f"{RESULTS} cannot be written: File too large$"):
        written(Path(directory))


def test_results_that_find_no_room_are_one_sentence_and_are_gone_on_with(tmp_path):
    ended = Program(fill_the_disk, str(tmp_path)).ended()
    assert ended.returncode == 0, ended.stderr
    assert written(tmp_path) == written(tmp_path / "whole")


@pytest.mark.parametrize(
    "content",
    [
        b"a line without an end",
        b'{"format": "other"}',
        b'{"format":"schedcc.results/1"}',
        b"\0" * 70_000,
    ],
)
def test_a_file_of_somebody_else_stays_as_it_was(tmp_path, content):
    for whole in (content, content + b"\n"):
        (tmp_path / RESULTS).write_bytes(whole)
        with pytest.raises(ResumeError, match="holds no results of a run"):
            ResultLog(tmp_path, JOB, TARGETS)
        assert (tmp_path / RESULTS).read_bytes() == whole


@pytest.mark.parametrize(
    "line", [b"[" * 100_000, b'{"a":' * 3000, b"9" * 5000, b"\xff", b"x" * 2**20]
)
def test_a_line_that_is_no_result_is_one_sentence_and_nothing_is_taken_away(tmp_path, line):
    content = written(tmp_path, 1) + line + b"\n" + b"cut off"
    (tmp_path / RESULTS).write_bytes(content)
    with pytest.raises(ResumeError, match="is damaged in line 3: it is not the result"):
        ResultLog(tmp_path, JOB, TARGETS)
    assert (tmp_path / RESULTS).read_bytes() == content


def test_more_results_than_the_run_has_are_damage_whatever_they_are(tmp_path):
    whole = written(tmp_path)
    for more in (whole.split(b"\n")[1] + b"\n", b"x" * 1000):
        (tmp_path / RESULTS).write_bytes(whole + more)
        with pytest.raises(ResumeError, match="is damaged in line 5"):
            ResultLog(tmp_path, JOB, TARGETS)


def test_results_are_read_from_a_regular_file_alone(tmp_path):
    os.mkfifo(tmp_path / RESULTS)
    with pytest.raises(ResumeError, match="is no regular file, needed one"):
        ResultLog(tmp_path, JOB, TARGETS)


def test_what_differs_is_shown_in_a_line_however_long_it_is(tmp_path):
    other = {"dtype": "\x1b[2J" * 1000, "\n": "x"}
    ResultLog(tmp_path, JOB | other, TARGETS).close()
    for job in (JOB, JOB | {"dtype": other["dtype"]}):
        with pytest.raises(ResumeError, match=r"whose .* differs: ") as refused:
            ResultLog(tmp_path, job, TARGETS)
        assert str(refused.value).isprintable()
        assert len(str(refused.value)) < 500
