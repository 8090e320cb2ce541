"""Corpora of parquet."""

import gzip
from pathlib import Path

import pytest

from runtime.language.text import Text, TextError, files, read_texts, records


def test_parquet_is_read_by_column(tmp_path: Path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(arrow.table({"text": ["a", "b"], "n": [1, 2]}), path)
    assert read_texts([path]) == [Text(f"{path}:1", "a", True), Text(f"{path}:2", "b", True)]
    with pytest.raises(TextError, match="has no column 'body': it has 'text', 'n'"):
        read_texts([path], "body")


def test_a_row_of_null_is_left_out(tmp_path: Path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(arrow.table({"text": [None, "b", None]}), path)
    assert read_texts([path]) == [Text(f"{path}:2", "b", True)]
    parquet.write_table(arrow.table({"text": [None]}), path)
    with pytest.raises(TextError, match="holds no record with a text"):
        read_texts([path])


@pytest.mark.parametrize(
    ("value", "nbytes"),
    [("ab", 2), ("漢字", 6), (b"abc", 3), ([{"role": "user", "content": "é"}], 6), (None, 1)],
)
def test_the_bound_of_a_row_of_parquet_counts_bytes_of_utf8(tmp_path, monkeypatch, value, nbytes):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"text": [value] * 300}), tmp_path / "a.parquet")
    rows = records.parquet_records(tmp_path / "a.parquet", "a.parquet", "text")
    monkeypatch.setattr(files, "MOST_BYTES", 300 * nbytes - 1)
    with pytest.raises(TextError, match=f"more than {300 * nbytes - 1:,} bytes, needed no more"):
        next(rows)


def test_a_small_file_of_parquet_cannot_become_more_text_than_a_text_may(
    tmp_path: Path, monkeypatch
):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(arrow.table({"text": ["a" * 1000] * 3000}), path)
    assert path.stat().st_size < 10_000
    assert len(read_texts([path])) == 3000
    monkeypatch.setattr(files, "MOST_BYTES", 2_000_000)
    with pytest.raises(TextError, match="becomes more than 2,000,000 bytes, needed no more"):
        read_texts([path])


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_parquet_may_be_compressed_as_a_whole(tmp_path: Path, monkeypatch, suffix):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    zstandard = pytest.importorskip("zstandard")
    parquet.write_table(arrow.table({"text": ["a", "b"]}), tmp_path / "a.parquet")
    content = (tmp_path / "a.parquet").read_bytes()
    packed = gzip.compress(content) if suffix == ".gz" else zstandard.compress(content)
    path = tmp_path / f"b.parquet{suffix}"
    path.write_bytes(packed)
    assert [text.content for text in read_texts([path])] == ["a", "b"]
    path.write_bytes(content)
    with pytest.raises(TextError, match="is not a whole"):
        read_texts([path])
    path.write_bytes(packed)
    monkeypatch.setattr(files, "MOST_BYTES", len(content) - 1)
    with pytest.raises(TextError, match=f"b.parquet{suffix} becomes more than"):
        read_texts([path])
