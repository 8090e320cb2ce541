"""How the command line names texts."""

from pathlib import Path

from runtime.cli.options import text_path


def test_only_a_dash_alone_is_standard_input(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert text_path("-") == Path("-")
    assert text_path("./-") == tmp_path / "-"
    assert text_path("./a.txt") == Path("a.txt")
