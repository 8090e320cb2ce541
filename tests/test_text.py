from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from runtime.text import TextError, Windows, default_text, read_text, tokenize
from tests.tiny_models import tiny_tokenizer


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


def decoded(tokens: torch.Tensor) -> list[str]:
    assert tokens.dtype == torch.int64
    assert tokens.dim() == 1
    return tiny_tokenizer().convert_ids_to_tokens(tokens.tolist())


def test_a_whole_text_has_no_separator():
    assert decoded(tokenize(tiny_tokenizer(), "ab\nc")) == ["ab", "Ċ", "c"]


def test_every_line_that_is_not_blank_is_a_document_after_a_separator():
    tokens = tokenize(tiny_tokenizer(), "ab\n\n  \nc\n", documents="lines")
    assert decoded(tokens) == ["<s>", "ab", "<s>", "c"]


def test_the_separator_can_be_chosen():
    tokens = tokenize(tiny_tokenizer(), "ab\nc", documents="lines", separator_id=1)
    assert decoded(tokens) == ["</s>", "ab", "</s>", "c"]


def test_the_end_of_a_text_separates_where_there_is_no_beginning():
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = None
    assert decoded(tokenize(tokenizer, "ab", documents="lines")) == ["</s>", "ab"]


def test_lines_without_any_separator_are_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token = None
    with pytest.raises(TextError, match="documents need a separator"):
        tokenize(tokenizer, "ab", documents="lines")


@pytest.mark.parametrize("separator", [-1, 261])
def test_a_separator_outside_the_vocabulary_is_refused(separator: int):
    with pytest.raises(TextError, match=f"is {separator}, and the vocabulary has ids 0 to 260"):
        tokenize(tiny_tokenizer(), "ab", documents="lines", separator_id=separator)


def test_a_long_text_gives_no_warning(capfd: pytest.CaptureFixture[str]):
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = 8
    assert len(tokenize(tokenizer, "x" * 100)) == 100
    assert capfd.readouterr() == ("", "")


def rows(windows: Windows) -> list[tuple[list[list[int]], list[list[int]]]]:
    return [(inputs.tolist(), labels.tolist()) for inputs, labels in windows]


def test_windows_are_consecutive_and_the_last_one_is_ragged():
    windows = Windows(torch.arange(13), sequence_length=5, micro_batch_size=2)
    assert rows(windows) == [
        ([[0, 1, 2, 3], [5, 6, 7, 8]], [[1, 2, 3, 4], [6, 7, 8, 9]]),
        ([[10, 11]], [[11, 12]]),
    ]
    assert (len(windows), windows.windows, windows.tokens) == (2, 3, 10)


def test_a_last_window_of_one_token_is_dropped():
    assert rows(Windows(torch.arange(7), 3, 1)) == [
        ([[0, 1]], [[1, 2]]),
        ([[3, 4]], [[4, 5]]),
    ]


def test_a_text_shorter_than_a_window_is_one_ragged_window():
    windows = Windows(torch.arange(3), sequence_length=512, micro_batch_size=8)
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
    windows = Windows(torch.arange(tokens), sequence_length, micro_batch_size, max_windows)
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
    tokens = torch.arange(20)
    windows = Windows(tokens, 5, 2)
    first = rows(windows)
    assert rows(windows) == first
    tokens[0] = 99
    assert rows(windows)[0][0][0][0] == 99


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"sequence_length": 1}, "sequence_length is 1, and at least 2 is needed"),
        ({"micro_batch_size": 0}, "micro_batch_size is 0, and at least 1 is needed"),
        ({"max_windows": 0}, "max_windows is 0, and at least 1 is needed"),
        ({"tokens": torch.arange(1)}, "the text has 1 tokens, and at least 2 are needed"),
        ({"tokens": torch.arange(0)}, "the text has 0 tokens, and at least 2 are needed"),
        ({"tokens": torch.zeros(2, 2)}, r"tokens have shape \[2, 2\]"),
    ],
)
def test_numbers_that_make_no_windows_are_refused(changes: dict[str, object], problem: str):
    arguments = {"tokens": torch.arange(9), "sequence_length": 3, "micro_batch_size": 1}
    with pytest.raises(TextError, match=problem):
        Windows(**(arguments | changes))
