"""Corpora in the ways that they lie on disk, and the windows over them."""

import gzip
import io
import json
import re
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runtime.language.text import (
    IGNORED,
    Documents,
    Text,
    TextError,
    Windows,
    check_sizes,
    files,
    read_texts,
    tokenize_documents,
)
from runtime.language.text.encoding import encode, encode_beginning
from tests.support.tiny_models import tiny_tokenizer

SEPARATOR, BOS = 1000, 2000


def json_lines(*records: Any) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def test_a_directory_is_all_of_its_texts_in_the_order_of_their_paths(tmp_path: Path):
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.txt").write_text("hidden")
    (tmp_path / "b" / "2.md").write_text("two")
    (tmp_path / "1.txt.gz").write_bytes(gzip.compress(b"one"))
    (tmp_path / "c.jsonl").write_text(json_lines({"text": "three"}, {"text": " "}, {"text": "4"}))
    (tmp_path / "picture.png").write_bytes(b"\xff")
    assert [(text.content, text.is_record) for text in read_texts([tmp_path])] == [
        ("one", False),
        ("two", False),
        ("three", True),
        ("4", True),
    ]
    assert read_texts([tmp_path])[-1].name == f"{tmp_path}/c.jsonl:3"


NO_SUFFIX_OF_A_TEXT = ["pipe", "x.json", "corpus.v2", "dump-2024.01", "corpus.gz", "x.txt.v2"]


@pytest.mark.parametrize("name", ["records.ndjson", *NO_SUFFIX_OF_A_TEXT])
def test_with_a_field_what_has_no_suffix_of_a_text_holds_records(tmp_path: Path, name):
    content = json_lines({"body": "a\r\nb"}, {"body": None}, {"body": "c"}).encode()
    packed = gzip.compress(content) if name.endswith(".gz") else content
    (tmp_path / name).write_bytes(packed)
    (tmp_path / "plain.txt").write_text("plain\r\n")
    assert read_texts([tmp_path / name, tmp_path / "plain.txt"], "body") == [
        Text(f"{tmp_path}/{name}:1", "a\r\nb", True),
        Text(f"{tmp_path}/{name}:3", "c", True),
        Text(f"{tmp_path}/plain.txt", "plain\n"),
    ]


@pytest.mark.parametrize("names", [[], ["a.txt"], ["a.txt", "b.md.gz"]])
def test_a_field_that_nothing_has_is_refused(tmp_path: Path, names):
    with pytest.raises(TextError, match="field is 'zz', and no text has records with fields"):
        read_texts([tmp_path / name for name in names], "zz")


def test_the_key_without_letters_is_one_too(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text(json_lines({"": "a", "text": "b"}))
    assert read_texts([tmp_path / "a.jsonl"], "")[0].content == "a"


def test_standard_input_is_given_once():
    with pytest.raises(TextError, match="standard input is given twice as a text"):
        read_texts([Path("-"), Path("a.txt"), Path("-")])


def test_a_directory_may_be_called_as_standard_input_is(tmp_path: Path, monkeypatch):
    (tmp_path / "-").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"said")))
    assert read_texts([Path("-")]) == [Text("standard input", "said")]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.jsonl", b'{"text": 1}\n', "line 1: text is int, needed a string, or a list"),
        ("a.jsonl", b'{"body": "b"}\n', "line 1 has no key 'text': it has 'body'"),
        ("a.jsonl", b'{"text": "b"}\n[]\n', "line 2 is no JSON object"),
        ("a.jsonl", b"{\n", "line 1 is not JSON: Expecting property name"),
        ("a.jsonl", b'{"text": ""}\n', "holds no record with a text"),
        ("a.jsonl", b'{"text": null}\n', "holds no record with a text"),
        ("a.jsonl", b'{"text": [{"role": "user"}]}\n', "is a list, needed a string, or --chat"),
        ("a.txt.gz", gzip.compress(b"text", mtime=0)[:-4], "is not a whole gzip file"),
        ("a.txt.gz", b"text", "is not a whole gzip file"),
    ],
)
def test_what_is_no_corpus_is_one_sentence(tmp_path: Path, name, content, problem):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TextError, match=re.escape(problem)) as caught:
        read_texts([tmp_path / name])
    assert "\n" not in str(caught.value)


def test_a_directory_without_texts_is_refused(tmp_path: Path):
    with pytest.raises(TextError, match=r"holds no text: needed files that end in \.txt"):
        read_texts([tmp_path])


@pytest.mark.parametrize(
    ("name", "module"), [("a.txt.zst", "zstandard"), ("a.parquet", "pyarrow.parquet")]
)
def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / name).write_bytes(b"x")
    package = module.partition(".")[0]
    with pytest.raises(TextError, match=f"read with {package}, which is not installed: pip ins"):
        read_texts([tmp_path / name])


def test_zstd_is_read_in_all_its_frames_and_a_part_of_one_is_refused(tmp_path: Path):
    zstandard = pytest.importorskip("zstandard")
    frames = [zstandard.ZstdCompressor().compress(part) for part in (b"ab ", b"cd")]
    (tmp_path / "a.zst").write_bytes(b"".join(frames))
    assert read_texts([tmp_path / "a.zst"])[0].content == "ab cd"
    (tmp_path / "a.zst").write_bytes(b"".join(frames)[:-2])
    with pytest.raises(TextError, match="its last frame is cut off"):
        read_texts([tmp_path / "a.zst"])


CASES = ["", "ab", " ab  cd\n", "naïve 漢字 ab\n\n12", "\u2003x", "🙂🙂 a"]


@pytest.mark.parametrize("text", CASES)
def test_bytes_and_words_of_tokens_add_up_to_those_of_their_text(text: str):
    found = encode(tiny_tokenizer(), [text])[0]
    assert found.sizes is not None
    assert len(found.sizes) == len(found.ids)
    assert found.sizes.sum(0).tolist() == [len(text.encode()), len(text.split())]


def test_a_word_and_its_bytes_belong_to_the_token_in_which_they_begin():
    found = encode(tiny_tokenizer(), ["ab ab ï"])[0]  # ab, space, ab, space, two bytes of ï
    assert found.sizes.tolist() == [[2, 1], [1, 0], [2, 1], [1, 0], [2, 1], [0, 0]]


def test_the_beginning_of_a_text_has_the_tokens_of_the_whole():
    text = "ab 12  ab1234\n" * 3000
    whole = encode(tiny_tokenizer(), [text])[0]
    part = encode_beginning(tiny_tokenizer(), text, 100)
    assert 100 <= len(part.ids) < len(whole.ids) / 4
    assert torch.equal(part.ids, whole.ids[: len(part.ids)])
    assert torch.equal(part.sizes, whole.sizes[: len(part.ids)])


def test_a_tokenizer_without_words_sees_the_whole_text():
    from tokenizers import pre_tokenizers

    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([])
    tokenizer.backend_tokenizer.pre_tokenizer = None
    text = "ab" * 30_000
    part, whole = encode_beginning(tokenizer, text, 10), encode(tokenizer, [text])[0]
    assert torch.equal(part.ids, whole.ids)


def test_only_as_many_texts_as_needed_are_tokenized():
    texts = iter([Text(str(number), "ab " * 40) for number in range(9)])
    documents = tokenize_documents(
        tiny_tokenizer(),
        texts,
        enough=lambda found: Windows(found, 8, 1).windows > 12,
        beginning=8 * 13,
    )
    assert len(documents.starts) - 1 == 2
    assert len(list(texts)) == 7


def test_records_are_documents_in_every_mode_and_texts_are_not_divided():
    texts = [Text("file", "ab\nab"), Text("file:1", "c\nc", True)]
    counts = {}
    for mode in ("whole", "texts", "lines", "packed"):
        found = tokenize_documents(tiny_tokenizer(), texts, documents=mode)
        counts[mode] = len(found.starts) - 1
        assert found.origins is not None
        assert found.origins.names[-1] == "file:1"
    assert counts == {"whole": 2, "texts": 2, "lines": 3, "packed": 3}


def test_conversations_are_written_with_the_template_of_the_model():
    tokenizer = tiny_tokenizer()
    messages = [{"role": "user", "content": "ab"}]
    with pytest.raises(TextError, match="has no chat template"):
        tokenize_documents(tokenizer, [Text("t", messages)])
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    found = tokenize_documents(tokenizer, [Text("t", messages)])
    assert tokenizer.convert_ids_to_tokens(found.tokens.tolist()) == ["<s>", "ab"]
    once = tokenize_documents(tokenizer, [Text("t", messages)], documents="texts")
    assert tokenizer.convert_ids_to_tokens(once.tokens.tolist()) == ["<s>", "ab"]
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    with pytest.raises(TextError, match="t: the chat template refuses the conversation: no"):
        tokenize_documents(tokenizer, [Text("t", messages)])


def test_windows_begin_with_what_the_tokenizer_begins_a_text_with():
    from tokenizers.processors import TemplateProcessing

    tokenizer, texts = tiny_tokenizer(), [Text("t", "ab 12 ab")]
    assert tokenize_documents(tokenizer, texts, bos=None).bos is None
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    for mode, bos in (("whole", 0), ("packed", 0), ("lines", None), ("texts", None)):
        assert tokenize_documents(tokenizer, texts, documents=mode, bos=None).bos == bos
    tokenizer.bos_token = None
    with pytest.raises(TextError, match="this tokenizer has none"):
        tokenize_documents(tokenizer, texts, bos=True)


def documents_of(lengths: list[int], mode: str, bos: int | None) -> Documents:
    tokens, starts, number = [], [0], 0
    for length in lengths:
        tokens += [SEPARATOR] if mode != "whole" else []
        tokens += range(number, number + length)
        number += length
        starts.append(len(tokens))
    return Documents(torch.tensor(tokens), torch.tensor(starts), mode, SEPARATOR, bos)


def predictions(windows: Windows) -> Iterator[tuple[int, list[int]]]:
    """Every target, and what it is predicted from."""
    for number, (inputs, labels) in enumerate(windows):
        assert inputs.shape == labels.shape
        places = windows.targets(number)
        assert torch.equal(windows.documents.tokens[places], labels[labels != IGNORED])
        for ids, row in zip(inputs.tolist(), labels.tolist(), strict=True):
            for place, target in enumerate(row):
                if target != IGNORED:
                    yield target, ids[: place + 1]


def expected(
    rows: list[list[int]], length: int, stride: int | None, bos: int | None
) -> Iterator[tuple[int, list[int]]]:
    """By the definition: windows one by one, and whatever was no target before is one."""
    room = length - (bos is not None)
    for row in rows:
        seen = 0
        for start in range(0, len(row), room if stride is None else stride):
            stop = min(start + room, len(row))
            led = [bos] if bos is not None and row[start] != SEPARATOR else []
            for at in range(max(seen, start), stop):
                context = led + row[start:at]
                if context and row[at] != SEPARATOR:
                    yield row[at], context
            seen = stop
            if stop == len(row):
                break


@given(
    lengths=st.lists(st.integers(2, 30), min_size=1, max_size=5),
    mode=st.sampled_from(["whole", "texts", "lines", "packed"]),
    length=st.integers(3, 12),
    stride=st.none() | st.integers(1, 11),
    bos=st.none() | st.just(BOS),
    size=st.integers(1, 4),
)
def test_overlapping_windows_and_windows_after_a_bos_are_those_of_the_definition(
    lengths, mode, length, stride, bos, size
):
    if mode in ("texts", "lines"):
        stride = stride or 1  # without one they roll, see test_text.py
    stride = None if stride is None else min(stride, length - 1)
    documents = documents_of(lengths, mode, bos)
    bounds = documents.starts.tolist()
    rows = [documents.tokens[a:b].tolist() for a, b in pairwise(bounds)]
    if mode == "packed":
        rows = [documents.tokens.tolist()]
    windows = Windows(documents, length, size, stride=stride)
    found = sorted(predictions(windows))
    assert found == sorted(expected(rows, length, stride, bos))
    assert windows.tokens == len(found)


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=5), length=st.integers(3, 12))
def test_documents_that_roll_after_a_bos_predict_every_token_from_full_windows(lengths, length):
    windows = Windows(documents_of(lengths, "texts", BOS), length, 2)
    found = sorted(predictions(windows))
    assert [target for target, _ in found] == list(range(sum(lengths)))
    for target, context in found:
        assert context[0] in (BOS, SEPARATOR)
        own = context[1:]
        assert own == list(range(target - len(own), target))
        assert len(context) < length


def test_windows_after_some_micro_batches_are_the_others():
    windows = Windows(documents_of([20, 9], "whole", None), 5, 2)
    everything = [(a.tolist(), b.tolist()) for a, b in windows]
    assert [(a.tolist(), b.tolist()) for a, b in windows.after(2)] == everything[2:]


@pytest.mark.parametrize(("stride", "problem"), [(0, "at least 1"), (9, "at most 8 is needed")])
def test_a_stride_that_leaves_tokens_out_is_refused(stride, problem):
    with pytest.raises(TextError, match=problem):
        check_sizes(8, 1, None, stride)


def test_a_stride_leaves_room_for_the_bos():
    with pytest.raises(TextError, match="stride is 8, and at most 7 is needed"):
        Windows(documents_of([20], "whole", BOS), 8, 1, stride=8)


def test_a_text_that_does_not_end_is_refused(monkeypatch):
    monkeypatch.setattr(files, "MOST_BYTES", 5_000_000)
    with pytest.raises(TextError, match="/dev/zero holds more than 5,000,000 bytes, needed no"):
        read_texts([Path("/dev/zero")])


def test_a_small_file_that_becomes_an_enormous_text_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(files, "MOST_BYTES", 5_000_000)
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(bytes(6_000_000)))
    with pytest.raises(TextError, match=r"bomb.gz becomes more than 5,000,000 bytes"):
        read_texts([tmp_path / "bomb.gz"])
    (tmp_path / "whole.gz").write_bytes(gzip.compress(b"a" * 5_000_000))
    assert len(read_texts([tmp_path / "whole.gz"])[0].content) == 5_000_000
    zstandard = pytest.importorskip("zstandard")
    (tmp_path / "bomb.zst").write_bytes(zstandard.ZstdCompressor().compress(bytes(6_000_000)))
    with pytest.raises(TextError, match=r"bomb.zst becomes more than 5,000,000 bytes"):
        read_texts([tmp_path / "bomb.zst"])


def test_a_record_that_is_deep_is_one_sentence(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "b"}\n' + "[" * 100_000)
    with pytest.raises(TextError, match=r"a.jsonl, line 2 is not JSON"):
        read_texts([tmp_path / "a.jsonl"])


def test_half_a_character_is_refused_where_it_comes_from(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": "whole"}\n{"text": "half \\ud83d"}\n')
    with pytest.raises(TextError, match=r"line 2: text has half a character, \\ud83d, at 5"):
        read_texts([tmp_path / "a.jsonl"])
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages[0].content }}"
    messages = [{"role": "user", "content": "\udc00"}]
    with pytest.raises(TextError, match=r"a\.jsonl:1 has half a character, \\udc00, at 0"):
        tokenize_documents(tokenizer, [Text("a.jsonl:1", messages)])


def test_of_many_fields_some_are_named(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text(json_lines({f"\n{n}" * 50: n for n in range(1000)}))
    with pytest.raises(TextError, match=r"it has '.*\(--field names another") as caught:
        read_texts([tmp_path / "a.jsonl"])
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) <= 1000
