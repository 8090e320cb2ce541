"""What directories of texts hold, and what of it cannot be read."""

import os
from pathlib import Path
from typing import Any

import pytest

from runtime.language.text import TextError, read_texts


def contents(path: Path) -> list[Any]:
    return [text.content for text in read_texts([path])]


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch):
    for folder in ("a", "b", ".git"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "t.txt").write_text(folder)
    scandir, closed = os.scandir, {str(tmp_path / ".git")}

    def listed(path: Any) -> Any:
        if str(path) in closed:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", listed)
    assert contents(tmp_path) == ["a", "b"]
    for folder in (tmp_path / "b", tmp_path):
        closed.add(str(folder))
        with pytest.raises(TextError) as caught:
            read_texts([tmp_path])
        assert str(caught.value) == f"directory {folder} cannot be read: Permission denied"


def test_links_to_directories_are_not_followed_and_those_to_files_are(tmp_path: Path):
    for folder in ("texts", "other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "t.txt").write_text(folder)
    (tmp_path / "texts" / "link").symlink_to(tmp_path / "other")
    (tmp_path / "texts" / "round.txt").symlink_to(tmp_path / "texts")
    (tmp_path / "texts" / "u.txt").symlink_to(tmp_path / "other" / "t.txt")
    assert contents(tmp_path / "texts") == ["texts", "other"]
    (tmp_path / "top").symlink_to(tmp_path / "other")
    assert contents(tmp_path / "top") == ["other"]


@pytest.mark.parametrize(
    ("target", "problem"),
    [("gone", "No such file or directory"), ("b.txt", "Too many levels of symbolic links")],
)
def test_a_link_to_nothing_is_named_if_it_is_called_like_a_text(tmp_path: Path, target, problem):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.png").symlink_to("gone")
    assert contents(tmp_path) == ["a"]
    (tmp_path / "b.txt").symlink_to(target)
    with pytest.raises(TextError) as caught:
        read_texts([tmp_path])
    expected = f"text file {tmp_path}/b.txt cannot be read: a link to {target}: {problem}"
    assert str(caught.value) == expected


def test_of_several_files_those_without_a_text_are_left_out(tmp_path: Path):
    (tmp_path / "a.txt").write_text(" \n")
    with pytest.raises(TextError, match=r"a\.txt holds no text, only 2 characters"):
        read_texts([tmp_path])
    (tmp_path / "b.jsonl").write_text('{"text": null}\n')
    with pytest.raises(TextError, match=r"a\.txt holds no text, only 2 characters"):
        read_texts([tmp_path])
    (tmp_path / "c.txt").write_text("c")
    assert contents(tmp_path) == ["c"]
    with pytest.raises(TextError, match=r"a\.txt holds no text"):
        read_texts([tmp_path / "c.txt", tmp_path / "a.txt"])
