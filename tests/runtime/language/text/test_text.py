import io
import os
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from runtime.language.text import (
    IGNORED,
    Documents,
    Text,
    TextError,
    Windows,
    default_text,
    read_text,
    read_texts,
    sharing,
    tokenize,
    tokenize_documents,
)
from runtime.testing import run_threads
from tests.support.tiny_models import tiny_tokenizer


def test_the_default_text_is_the_language_reference_in_its_own_order():
    text = default_text()
    assert len(text) > 400_000
    assert text.startswith('The "assert" statement')
    assert text.index("Assignment statements") < text.index('The "yield" statement')


def test_a_text_file_is_read_as_utf8(tmp_path: Path):
    path = tmp_path / "t.txt"
    path.write_bytes("\ufeffnaïve\r\n漢字\n".encode())
    assert read_text(path) == "naïve\n漢字\n"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "holds no text"),
        (b" \n\t ", "holds no text, only 4 characters of white space"),
        (b"ok \xff", "is not UTF-8: invalid start byte at byte 3"),
    ],
)
def test_a_file_without_text_is_refused(tmp_path: Path, content: bytes, problem: str):
    path = tmp_path / "t.txt"
    path.write_bytes(content)
    with pytest.raises(TextError, match=problem):
        read_text(path)


def test_a_missing_file_and_a_directory_are_refused(tmp_path: Path):
    with pytest.raises(TextError, match=r"nothing\.txt cannot be read: No such file"):
        read_text(tmp_path / "nothing.txt")
    with pytest.raises(TextError, match="is a directory, and a file is needed"):
        read_text(tmp_path)


def test_a_named_pipe_is_read_once_and_to_its_end(tmp_path: Path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = Thread(target=pipe.write_text, args=("x" * 200_000,), daemon=True)
    writer.start()
    assert read_text(pipe) == "x" * 200_000
    writer.join(10)
    assert not writer.is_alive()


def test_a_dash_is_standard_input(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("naïve\r\n".encode())))
    assert read_texts([Path("-")]) == [Text("standard input", "naïve\n")]
    with pytest.raises(TextError, match="standard input holds no text"):
        read_text(Path("-"))
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(TextError, match="standard input cannot be read: it is closed"):
        read_text(Path("-"))


def test_no_text_is_the_default_text():
    assert read_texts([]) == [Text("pydoc_data.topics", default_text())]


def test_a_name_that_would_break_the_line_is_escaped(tmp_path: Path):
    with pytest.raises(TextError) as caught:
        read_text(tmp_path / "a\nb\x1b[2J")
    assert str(caught.value).endswith(r"a\nb\x1b[2J cannot be read: No such file or directory")


def encode(text: str, **options: Any) -> Documents:
    texts = [Text("t", part) for part in text.split("|")]
    return tokenize_documents(tiny_tokenizer(), texts, **options)


def decoded(documents: Documents) -> list[str]:
    tokens = documents.tokens
    assert tokens.dtype == torch.int64
    assert tokens.dim() == 1
    return tiny_tokenizer().convert_ids_to_tokens(tokens.tolist())


def test_a_whole_text_has_no_separator():
    assert decoded(encode("ab\nc")) == ["ab", "Ċ", "c"]


def test_every_text_is_a_document_of_its_own():
    documents = encode("ab\nc|c", documents="whole")
    assert decoded(documents) == ["ab", "Ċ", "c", "c"]
    assert documents.starts.tolist() == [0, 3, 4]


@pytest.mark.parametrize("mode", ["lines", "packed"])
def test_every_line_that_is_not_blank_is_a_document_after_a_separator(mode: str):
    documents = encode("ab\n\n  \nc\n|ab", documents=mode)
    assert decoded(documents) == ["<s>", "ab", "<s>", "c", "<s>", "ab"]
    assert documents.starts.tolist() == [0, 2, 4, 6]


def test_many_lines_are_all_tokenized():
    documents = encode("ab\n" * 2500, documents="lines")
    assert decoded(documents) == ["<s>", "ab"] * 2500
    assert len(documents.starts) == 2501


def test_the_separator_can_be_chosen():
    assert decoded(encode("ab\nc", documents="lines", separator_id=1)) == [
        *("</s>", "ab"),
        *("</s>", "c"),
    ]


def test_a_separator_that_would_not_be_used_is_refused():
    with pytest.raises(TextError, match="separator_id is 1, but documents is 'whole'"):
        encode("ab", separator_id=1)


def test_the_end_of_a_text_separates_where_there_is_no_beginning():
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = None
    documents = tokenize_documents(tokenizer, [Text("t", "ab")], documents="lines")
    assert decoded(documents) == ["</s>", "ab"]


def test_lines_without_any_separator_are_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token = None
    with pytest.raises(TextError, match="documents need a separator"):
        tokenize_documents(tokenizer, [Text("t", "ab")], documents="lines")


@pytest.mark.parametrize("separator", [-1, 261])
def test_a_separator_outside_the_vocabulary_is_refused(separator: int):
    with pytest.raises(TextError, match=f"is {separator}, and the vocabulary has ids 0 to 260"):
        encode("ab", documents="lines", separator_id=separator)


def test_a_long_text_gives_no_warning(capfd: pytest.CaptureFixture[str]):
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = 8
    assert len(tokenize(tokenizer, "x" * 100)) == 100
    assert capfd.readouterr() == ("", "")


def row(*lengths: int) -> Documents:
    """Texts of so many tokens, all of them different."""
    return Documents.whole(*torch.arange(sum(lengths)).split(lengths))


def rows(windows: Windows) -> list[tuple[list[list[int]], list[list[int]]]]:
    return [(inputs.tolist(), labels.tolist()) for inputs, labels in windows]


def test_windows_are_consecutive_and_the_last_one_is_ragged():
    windows = Windows(row(13), sequence_length=5, micro_batch_size=2)
    assert rows(windows) == [
        ([[0, 1, 2, 3], [5, 6, 7, 8]], [[1, 2, 3, 4], [6, 7, 8, 9]]),
        ([[10, 11]], [[11, 12]]),
    ]
    assert (len(windows), windows.windows, windows.tokens) == (2, 3, 10)


def test_a_last_window_of_one_token_is_dropped():
    assert rows(Windows(row(7), 3, 1)) == [
        ([[0, 1]], [[1, 2]]),
        ([[3, 4]], [[4, 5]]),
    ]


def test_a_text_shorter_than_a_window_is_one_ragged_window():
    windows = Windows(row(3), sequence_length=512, micro_batch_size=8)
    assert rows(windows) == [([[0, 1]], [[1, 2]])]


@given(
    tokens=st.integers(2, 200),
    sequence_length=st.integers(2, 40),
    micro_batch_size=st.integers(1, 9),
    max_windows=st.none() | st.integers(1, 30),
)
@example(tokens=2, sequence_length=2, micro_batch_size=1, max_windows=None)
@example(tokens=12, sequence_length=5, micro_batch_size=1, max_windows=2)
@example(tokens=12, sequence_length=5, micro_batch_size=4, max_windows=3)
def test_windows_predict_every_token_once_except_the_first_of_each(
    tokens: int, sequence_length: int, micro_batch_size: int, max_windows: int | None
):
    windows = Windows(row(tokens), sequence_length, micro_batch_size, max_windows)
    batches = list(windows)
    starts = range(0, tokens - 1, sequence_length)[:max_windows]
    predicted = [
        token
        for start in starts
        for token in range(start + 1, min(start + sequence_length, tokens))
    ]
    assert [label for _, labels in batches for label in labels.flatten().tolist()] == predicted
    assert all(torch.equal(inputs + 1, labels) for inputs, labels in batches)
    assert len(batches) == len(windows)
    assert sum(len(inputs) for inputs, _ in batches) == windows.windows == len(starts)
    assert windows.tokens == len(predicted)
    assert all(len(inputs) <= micro_batch_size for inputs, _ in batches)
    widths = [inputs.shape[1] for inputs, _ in batches]
    assert all(earlier == sequence_length - 1 for earlier, _ in pairwise(widths))


def test_windows_can_be_read_again_and_copy_no_tokens():
    documents = row(20)
    windows = Windows(documents, 5, 2)
    first = rows(windows)
    assert rows(windows) == first
    documents.tokens[0] = 99
    assert rows(windows)[0][0][0][0] == 99


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"sequence_length": 1}, "sequence_length is 1, and at least 2 is needed"),
        ({"micro_batch_size": 0}, "micro_batch_size is 0, and at least 1 is needed"),
        ({"max_windows": 0}, "max_windows is 0, and at least 1 is needed"),
        ({"documents": row(1)}, "the text has 1 token, and at least 2 are needed"),
        ({"documents": row(0)}, "the text has 0 tokens, and at least 2 are needed"),
        (
            {"documents": row(1, 0)},
            "the first text has 1 token, and at least 2 are needed to predict one; none of the 2 "
            "texts has as many",
        ),
        ({"documents": row(0)._replace(bos=7)}, "0 tokens, and at least 1 is needed"),
    ],
)
def test_numbers_that_make_no_windows_are_refused(changes: dict[str, object], problem: str):
    arguments = {"documents": row(9), "sequence_length": 3, "micro_batch_size": 1}
    with pytest.raises(TextError, match=problem):
        Windows(**(arguments | changes))


def test_windows_never_reach_from_one_text_into_the_next():
    windows = Windows(row(5, 4), sequence_length=3, micro_batch_size=8)
    assert rows(windows) == [
        ([[0, 1], [5, 6]], [[1, 2], [6, 7]]),
        ([[3]], [[4]]),
    ]
    assert (windows.windows, windows.tokens) == (3, 5)  # of the second text, one token is left


def test_a_text_of_which_no_token_can_be_predicted_is_left_out():
    windows = Windows(row(1, 3, 0, 1), sequence_length=3, micro_batch_size=1)
    assert rows(windows) == [([[1, 2]], [[2, 3]])]
    led = Windows(row(1, 0, 2)._replace(bos=7), sequence_length=3, micro_batch_size=3)
    assert sorted(predictions(led)) == [([7], 0), ([7], 1), ([7, 1], 2)]


def test_if_no_token_of_any_text_can_be_predicted_the_first_is_named():
    texts = [Text(f"a.jsonl:{number}", "ab", True) for number in (2, 3)]
    with pytest.raises(TextError, match=r"^a\.jsonl:2 has 1 token, and at least 2 are needed"):
        Windows(tokenize_documents(tiny_tokenizer(), texts), 8, 1)
    alone: Any = None  # nothing travels: only the first stage can name them
    with pytest.raises(TextError, match=r"^a\.jsonl:2 has 1 token, and at least 2 are needed"):
        sharing.share(tokenize_documents(tiny_tokenizer(), texts), alone, wanted=True)


SEPARATOR = 1000


def lines(*lengths: int, mode: str = "lines") -> Documents:
    """Documents of so many tokens, all of them different, with a separator before each."""
    tokens, starts, number = [], [0], 0
    for length in lengths:
        tokens += [SEPARATOR, *range(number, number + length)]
        number += length
        starts.append(len(tokens))
    return Documents(torch.tensor(tokens), torch.tensor(starts), mode, SEPARATOR)


def predictions(windows: Windows) -> Iterator[tuple[list[int], int]]:
    """Every target, with the context that it is predicted from."""
    for inputs, labels in windows:
        assert inputs.shape == labels.shape
        for ids, targets in zip(inputs.tolist(), labels.tolist(), strict=True):
            for place, target in enumerate(targets):
                if target != IGNORED:
                    yield ids[: place + 1], target


def test_each_document_alone_predicts_all_of_its_tokens_and_no_separator():
    windows = Windows(lines(2, 5), sequence_length=4, micro_batch_size=2)
    assert sorted(predictions(windows), key=lambda pair: pair[1]) == [
        ([SEPARATOR], 0),
        ([SEPARATOR, 0], 1),
        ([SEPARATOR], 2),
        ([SEPARATOR, 2], 3),
        ([SEPARATOR, 2, 3], 4),
        ([3, 4], 5),
        ([3, 4, 5], 6),
    ]
    assert (windows.windows, windows.tokens) == (3, 7)


def rolling(length: int, first: int, room: int) -> Iterator[tuple[list[int], int]]:
    """What each token of a document is predicted from, by the definition.

    Windows have `room` inputs and no target twice. The first begins with the separator; the last
    one reaches back as far as it has room.
    """
    document = [SEPARATOR, *range(first, first + length)]
    for done in range(0, length, room):
        end = min(done + room, length)
        start = 0 if done == 0 else end - room
        yield from ((document[start : at + 1], document[at + 1]) for at in range(done, end))


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    sequence_length=st.integers(2, 12),
    micro_batch_size=st.integers(1, 5),
)
@example(lengths=[1], sequence_length=2, micro_batch_size=1)
@example(lengths=[11, 22, 1], sequence_length=12, micro_batch_size=2)
def test_documents_alone_roll_as_in_lm_evaluation_harness(
    lengths: list[int], sequence_length: int, micro_batch_size: int
):
    windows = Windows(lines(*lengths), sequence_length, micro_batch_size)
    expected, first = [], 0
    for length in lengths:
        expected += rolling(length, first, sequence_length - 1)
        first += length
    assert sorted(predictions(windows), key=lambda pair: pair[1]) == expected
    assert windows.tokens == sum(lengths)
    sizes = [len(inputs) for inputs, _ in windows]
    assert sum(sizes) == windows.windows
    assert all(size == micro_batch_size for size in sizes[:-1])


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    sequence_length=st.integers(2, 12),
    micro_batch_size=st.integers(1, 5),
    max_windows=st.none() | st.integers(1, 9),
)
@example(lengths=[1, 1, 2], sequence_length=2, micro_batch_size=2, max_windows=None)
def test_packed_documents_predict_no_separator_and_no_window_is_without_a_target(
    lengths: list[int], sequence_length: int, micro_batch_size: int, max_windows: int | None
):
    documents = lines(*lengths, mode="packed")
    tokens = documents.tokens.tolist()
    parts = [tokens[at : at + sequence_length] for at in range(0, len(tokens), sequence_length)]
    parts = [part for part in parts if set(part[1:]) - {SEPARATOR}][:max_windows]
    expected = [
        (part[:place], target)
        for part in parts
        for place, target in enumerate(part)
        if place and target != SEPARATOR
    ]
    if not expected:
        with pytest.raises(TextError, match="holds a token to predict"):
            Windows(documents, sequence_length, micro_batch_size, max_windows)
        return
    windows = Windows(documents, sequence_length, micro_batch_size, max_windows)
    assert sorted(predictions(windows), key=lambda pair: pair[1]) == expected
    assert (windows.windows, windows.tokens) == (len(parts), len(expected))
    for inputs, labels in windows:
        assert (labels != IGNORED).any(1).all()
        assert labels.shape == inputs.shape


def test_a_token_of_the_text_that_looks_like_a_separator_is_a_target():
    documents = encode("a</s>c", documents="packed", separator_id=1)
    assert decoded(documents) == ["</s>", "a", "</s>", "c"]
    assert Windows(documents, 16, 1).tokens == 3


@pytest.mark.parametrize("mode", ["whole", "lines", "packed"])
def test_the_stages_that_want_documents_get_them_and_the_others_keep_none(
    mode: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sharing, "CHUNK", 3)
    documents = row(5, 2) if mode == "whole" else lines(4, 7, mode=mode)

    def stage(end: Any) -> Documents | None:
        mine = documents if end.rank == 0 else None
        return sharing.share(mine, end, wanted=end.rank == end.ranks - 1)

    for stages in (1, 2, 3):
        found = run_threads(stages, stage)
        last = found[-1]
        assert found[0] is documents
        assert last is not None
        assert torch.equal(last.tokens, documents.tokens)
        assert torch.equal(last.starts, documents.starts)
        assert last[2:] == documents[2:]
        assert found[1:-1] == [None] * (stages - 2)
