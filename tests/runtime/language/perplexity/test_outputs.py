"""Files of scores: whole or as they were, and known to be writable before there is a result."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from runtime.language.perplexity.advice import command
from runtime.language.perplexity.outputs import (
    OutputError,
    UnwrittenError,
    document_scores,
    require_apart,
    require_writable,
    token_scores,
    write_lines,
)
from runtime.language.text import Text, tokenize_documents
from schemas import TokenScore
from tests.support.tiny_models import tiny_tokenizer

SCORE = TokenScore(document=0, position=0, token_id=1, token="a", loss=0.5)


def scores(error: Exception | None = None) -> Iterator[TokenScore]:
    yield SCORE
    if error is not None:
        raise error
    yield SCORE


def read(path: Path) -> list[TokenScore]:
    return [*map(TokenScore.model_validate_json, path.read_text().splitlines())]


def test_names_that_are_no_utf_8_are_written_as_escapes(tmp_path):
    documents = tokenize_documents(tiny_tokenizer(), [Text("a\udcff", "ab ab 12 cd")])
    losses = torch.ones(len(documents.tokens))
    tokenizer = SimpleNamespace(convert_ids_to_tokens=lambda _: "\ud800")
    write_lines(tmp_path / "documents", document_scores(documents, losses))
    write_lines(tmp_path / "tokens", token_scores(documents, losses, tokenizer))
    assert r"a\\udcff" in (tmp_path / "documents").read_text()
    assert r"\\ud800" in (tmp_path / "tokens").read_text()
    assert (
        command(["--model", "a\udcff"], [0, 1]).encode()
        == b"pipeval --model 'a\\udcff' --partition 0,1"
    )


@pytest.mark.parametrize("error", [KeyError("a"), OSError(28, "No space left on device")])
def test_a_file_that_was_there_stays_until_the_new_one_is_whole(tmp_path, error):
    path = tmp_path / "scores.jsonl"
    path.write_text("of an earlier run")
    with pytest.raises((KeyError, UnwrittenError)) as raised:
        write_lines(path, scores(error))
    if isinstance(error, OSError):
        assert str(raised.value) == f"{path} cannot be written: No space left on device"
    assert path.read_text() == "of an earlier run"
    assert list(tmp_path.iterdir()) == [path]


def test_the_new_file_has_the_permissions_and_the_links_of_the_old_one(tmp_path):
    path, link = tmp_path / "scores.jsonl", tmp_path / "link"
    path.write_text("of an earlier run")
    path.chmod(0o600)
    link.symlink_to(path.name)
    with path.open() as reader:
        write_lines(link, scores())
        assert reader.read() == "of an earlier run"
    assert link.is_symlink()
    assert read(path) == [SCORE, SCORE]
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(list(tmp_path.iterdir())) == 2


def test_a_new_file_may_be_read_by_whom_the_umask_lets(tmp_path):
    before = os.umask(0o027)
    try:
        write_lines(tmp_path / "scores.jsonl", scores())
    finally:
        os.umask(before)
    assert (tmp_path / "scores.jsonl").stat().st_mode & 0o777 == 0o640


def test_a_pipe_a_device_and_an_open_file_are_written_to_as_they_are(tmp_path):
    pipe, found = tmp_path / "pipe", list[str]()
    os.mkfifo(pipe)
    require_writable(pipe)
    reader = threading.Thread(target=lambda: found.append(pipe.read_text()), daemon=True)
    reader.start()
    write_lines(pipe, scores())
    reader.join(60)
    assert found[0].count("\n") == 2

    with (tmp_path / "redirected").open("w+") as file:
        for name in (f"/dev/fd/{file.fileno()}", f"/proc/self/fd/{file.fileno()}"):
            require_writable(Path(name))
            write_lines(Path(name), scores())
            file.seek(0)
            assert file.read().count("\n") == 2

    require_writable(Path("/dev/full"))
    with pytest.raises(UnwrittenError, match=r"^/dev/full cannot be written: No space left"):
        write_lines(Path("/dev/full"), scores())
    assert Path("/dev/full").is_char_device()


def test_a_place_that_takes_no_file_is_found_out_before_anything_is_written(tmp_path):
    for path, said in (
        (tmp_path, "needed a file in a directory that exists"),
        (tmp_path / "no" / "file", "needed a file in a directory that exists"),
        (tmp_path / "new\nline" / "file", "needed a file in a directory that exists"),
        (tmp_path / ("x" * 300), "File name too long"),
        (Path("/proc/scores.jsonl"), "cannot be written: No such file"),
    ):
        with pytest.raises(OutputError, match=said) as refused:
            require_writable(path)
        assert "\n" not in str(refused.value)
    require_writable(tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_may_not_be_written_to_is_found_out_and_stays_as_it_is(tmp_path, monkeypatch):
    path = tmp_path / "scores.jsonl"
    path.write_text("of an earlier run")
    monkeypatch.setattr(os, "access", lambda place, _: Path(place) != path)
    with pytest.raises(OutputError, match="cannot be written: Permission denied"):
        require_writable(path)
    assert path.read_text() == "of an earlier run"


def test_a_file_in_a_directory_that_may_not_be_changed_is_written_to(tmp_path, monkeypatch):
    path = tmp_path / "scores.jsonl"
    path.write_text("of an earlier run")
    inode = path.stat().st_ino
    monkeypatch.setattr(os, "access", lambda place, _: Path(place) == path)
    require_writable(path)
    write_lines(path, scores())
    assert read(path) == [SCORE, SCORE]
    assert path.stat().st_ino == inode


def test_one_file_is_not_written_to_twice_whatever_it_is_called(tmp_path, monkeypatch):
    path = tmp_path / "scores.jsonl"
    path.write_text("")
    (tmp_path / "link").symlink_to(path)
    (tmp_path / "name").hardlink_to(path)
    (tmp_path / "nowhere").symlink_to("not-yet")
    monkeypatch.chdir(tmp_path)
    for one, other in (
        (path, path),
        (path, Path("scores.jsonl")),
        (Path("new"), tmp_path / "new"),
        (path, tmp_path / "link"),
        (path, tmp_path / "name"),
        (tmp_path / "nowhere", tmp_path / "not-yet"),
    ):
        with pytest.raises(OutputError, match=r"--first and --second are both .*, needed two"):
            require_apart({"--first": one, "--none": None, "--second": other})
    require_apart({"--first": path, "--second": tmp_path / "other"})
