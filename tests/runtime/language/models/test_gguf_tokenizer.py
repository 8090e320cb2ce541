"""What a GGUF file says of its tokenizer is done, or refused by its key."""

from pathlib import Path

import gguf
import pytest
from transformers import AutoTokenizer

from runtime.language.models import ModelError, load_tokenizer, locate_model
from runtime.language.models.gguf.cache import converted
from runtime.language.text import tokenize
from tests.support.tiny_models import (
    VOCABULARY,
    tiny_model,
    tiny_tokenizer,
    write_gguf,
    write_sentencepiece,
)

SPACE, A = 259, 260
SPECIAL = "<｜end▁of▁text｜>"
"""Of characters that the alphabet of bytes does not have, as DeepSeek's special tokens are."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCHEDCC_CACHE", str(tmp_path / "cache"))


def ids(path: Path, text: str) -> list[int]:
    return tokenize(load_tokenizer(locate_model(str(path))), text).tolist()


def sentencepiece(directory: Path, **keys: object) -> Path:
    return write_gguf(
        directory / "m.gguf",
        tiny_model("llama"),
        write_tokenizer=write_sentencepiece,
        extra_metadata={f"tokenizer.ggml.{key}": value for key, value in keys.items()},
    )


def byte_level(directory: Path, **keys: object) -> Path:
    metadata = {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    return write_gguf(directory / "m.gguf", tiny_model("llama"), extra_metadata=metadata)


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        converted(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, [SPACE, A, SPACE, A]),
        ({"add_space_prefix": True}, [SPACE, A, SPACE, A]),
        ({"add_space_prefix": False}, [A, SPACE, A]),
    ],
)
def test_a_space_comes_before_a_text_unless_the_file_says_otherwise(
    tmp_path: Path, keys: dict[str, object], expected: list[int]
):
    path = sentencepiece(tmp_path, **keys)
    assert ids(path, "a a") == expected
    assert load_tokenizer(locate_model(str(path))).decode(ids(path, "a a")) == "a a"


def test_where_transformers_reads_all_that_a_file_says_the_ids_are_its_ids(tmp_path: Path):
    text = "a  a\n<s>漢 <unk>ab12</s> a"
    for path in (
        sentencepiece(tmp_path),
        write_gguf(tmp_path / "m.gguf", tiny_model("llama"), word_rule="llama-bpe"),
    ):
        theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
        assert ids(path, text) == theirs(text, add_special_tokens=False)["input_ids"]


def test_a_byte_level_file_that_asks_for_a_space_before_a_text_is_refused(tmp_path: Path):
    assert ids(byte_level(tmp_path, add_space_prefix=False), "ab") == [258]
    assert "sets tokenizer.ggml.add_space_prefix to True" in refusal(
        byte_level(tmp_path, add_space_prefix=True)
    )


@pytest.mark.parametrize("value", [True, False])
def test_what_is_added_around_a_text_has_no_effect_since_it_is_evaluated_without(
    tmp_path: Path, value: bool
):
    keys = {"add_bos_token": value, "add_eos_token": value, "add_sep_token": value}
    assert ids(byte_level(tmp_path, **keys, eot_token_id=1), "ab") == [258]
    assert ids(sentencepiece(tmp_path, **keys), "a") == [SPACE, A]


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        (
            {"remove_extra_whitespaces": True},
            "sets tokenizer.ggml.remove_extra_whitespaces to True",
        ),
        ({"precompiled_charsmap": "abc"}, "sets tokenizer.ggml.precompiled_charsmap to 'abc'"),
        ({"normalizer.lowercase": True}, "sets tokenizer.ggml.normalizer.lowercase to True, which"),
    ],
)
def test_keys_that_may_change_the_tokens_are_refused(
    tmp_path: Path, keys: dict[str, object], problem: str
):
    for write in (byte_level, sentencepiece):
        assert problem in refusal(write(tmp_path, **keys))
        off = {key: False if value is True else "" for key, value in keys.items()}
        assert ids(write(tmp_path, **off), "a")


@pytest.mark.parametrize("model", ["t5", "bert", "rwkv"])
def test_a_kind_of_tokenizer_that_is_not_known_is_refused(tmp_path: Path, model: str):
    def write(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model(model)
        writer.add_token_list([str(index) for index in range(VOCABULARY)])

    path = write_gguf(tmp_path / "m.gguf", tiny_model("llama"), write_tokenizer=write)
    assert (
        f"sets tokenizer.ggml.model to '{model}'; the supported tokenizers are gpt2 and llama"
        in (refusal(path))
    )


def with_last_tokens(*last: tuple[str, gguf.TokenType], merges: tuple[str, ...] = ("a b",)):
    """The tiny tokenizer, but for its last tokens, and with other merges."""

    def write(writer: gguf.GGUFWriter) -> None:
        tokens = tiny_tokenizer().convert_ids_to_tokens(list(range(VOCABULARY - len(last))))
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list([*tokens, *(token for token, _ in last)])
        writer.add_token_merges(merges)
        writer.add_token_types([3, 3] + [1] * (len(tokens) - 2) + [kind for _, kind in last])
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(VOCABULARY - 1)

    return write


@pytest.mark.parametrize("kind", [gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED])
@pytest.mark.parametrize("token", ["<tool>", SPECIAL])
def test_tokens_that_the_file_marks_are_never_cut(tmp_path: Path, token: str, kind: gguf.TokenType):
    path = write_gguf(
        tmp_path / "m.gguf",
        tiny_model("llama"),
        write_tokenizer=with_last_tokens(("Ġx", gguf.TokenType.NORMAL), (token, kind)),
    )
    assert ids(path, f"ab{token}ab") == [258, 260, 258]
    tokenizer = load_tokenizer(locate_model(str(path)))
    assert (tokenizer.eos_token, tokenizer.eos_token_id, len(tokenizer)) == (token, 260, 261)


def test_a_word_that_the_file_marks_by_mistake_is_still_a_word(tmp_path: Path):
    path = write_gguf(
        tmp_path / "m.gguf",
        tiny_model("llama"),
        write_tokenizer=with_last_tokens(
            ("æ¼", gguf.TokenType.NORMAL),
            ("漢", gguf.TokenType.CONTROL),  # its bytes are spelled æ¼¢
            ("</s>2", gguf.TokenType.CONTROL),
            merges=("æ ¼", "æ¼ ¢"),
        ),
    )
    tokenizer = load_tokenizer(locate_model(str(path)))
    assert sorted(tokenizer.added_tokens_decoder) == [0, 1, 260]
    assert ids(path, "漢") == [259]


def test_tokens_of_a_class_that_the_file_does_not_have_are_not_added(tmp_path: Path):
    path = byte_level(tmp_path)
    tokenizer = load_tokenizer(locate_model(str(path)))
    assert len(tokenizer) == VOCABULARY
    assert max(ids(path, "a<|endoftext|>b")) < VOCABULARY


def test_a_part_of_a_split_file_says_how_to_merge_them(tmp_path: Path):
    metadata = {"split.no": 1, "split.count": 3}
    path = write_gguf(tmp_path / "m.gguf", tiny_model("llama"), extra_metadata=metadata)
    assert refusal(path) == (
        f"{path} is part 2 of 3 of a model that was split into several files: merge them into one "
        "(llama-gguf-split --merge), and give that"
    )
    metadata = {"split.no": 0, "split.count": 1}
    path = write_gguf(tmp_path / "m.gguf", tiny_model("llama"), extra_metadata=metadata)
    assert converted(path).is_dir()


@pytest.mark.parametrize("kind", ["adapter", "mmproj", "imatrix"])
def test_a_file_of_another_type_than_a_model_is_said_to_be_one(tmp_path: Path, kind: str):
    metadata = {"general.type": kind}
    path = write_gguf(tmp_path / "m.gguf", tiny_model("llama"), extra_metadata=metadata)
    assert refusal(path) == f"{path} holds no model, but a GGUF file of the type '{kind}'"
