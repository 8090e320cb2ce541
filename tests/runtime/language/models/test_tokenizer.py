import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast

from runtime.language.models import ModelError, load_tokenizer, locate_model, split_causal_lm
from runtime.language.text import Documents, Windows, default_text, tokenize
from runtime.language.text.encoding import adds_bos
from tests.support.tiny_models import (
    smollm2,
    smollm2_tokenizer,
    tiny_model,
    tiny_tokenizer,
    write_gguf,
)

AWKWARD = "  two spaces\n\n\ttab\r\n naïve 漢字 🎉 e\u0301 \u200b 3.14159 , don't  \n"


def words(path: Path, text: str) -> list[str]:
    tokenizer = load_tokenizer(locate_model(str(path)))
    return tokenizer.convert_ids_to_tokens(tokenize(tokenizer, text).tolist())


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Convert into a directory of the test; without this, SmolLM2 is converted once for ever."""
    monkeypatch.setenv("SCHEDCC_CACHE", str(tmp_path / "cache"))


def tiny_gguf(directory: Path, word_rule: str | None, family: str = "llama") -> Path:
    return write_gguf(directory / "m.gguf", tiny_model(family), word_rule=word_rule)


@pytest.mark.parametrize("digits", ["7", "42", "2024", "1234567890"])
def test_smollm2_sees_digits_singly(digits: str):
    ids = tokenize(smollm2_tokenizer(), f"x{digits}y")
    assert smollm2_tokenizer().convert_ids_to_tokens(ids.tolist()) == ["x", *digits, "y"]


def test_smollm2_keeps_the_spaces_before_a_number_together():
    # GPT-2's rule alone gives the number the last of them: ĠĠ, Ġ, 1, 2.
    ids = tokenize(smollm2_tokenizer(), "a   12")
    assert smollm2_tokenizer().convert_ids_to_tokens(ids.tolist()) == ["a", "ĠĠĠ", "1", "2"]


def test_smollm2_adds_no_special_tokens_and_knows_its_own():
    tokenizer = smollm2_tokenizer()
    assert len(tokenizer) == 49152
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert tokenizer.decode(tokenize(tokenizer, "Hello")) == "Hello"


@pytest.mark.parametrize("text", [AWKWARD, "", "\n", default_text()[:20_000]])
def test_text_survives_the_round_trip(text: str):
    tokenizer = smollm2_tokenizer()
    assert tokenizer.decode(tokenize(tokenizer, text)) == text


# SmolLM2's vocabulary has no token for six control characters, nor for the bytes F1 and F2 that
# begin the characters from U+40000 on: its tokenizer drops them.
SMOLLM2_CHARACTERS = st.characters(
    codec="utf-8", max_codepoint=0x3FFFF, exclude_characters="\x04\x06\x13\x14\x16\x1d"
)


@settings(deadline=None)
@given(text=st.text(SMOLLM2_CHARACTERS))
def test_any_text_survives_the_round_trip(text: str):
    tokenizer = smollm2_tokenizer()
    assert tokenizer.decode(tokenize(tokenizer, text)) == text


@torch.inference_mode()
def perplexity(tokens: torch.Tensor, max_windows: int) -> float:
    windows = Windows(Documents.whole(tokens), 512, 1, max_windows)
    layers = split_causal_lm(smollm2())
    total = torch.zeros((), dtype=torch.float64)
    for tensor, labels in windows:
        for layer in layers:
            tensor = layer(tensor)
        total += cross_entropy(tensor.flatten(0, 1), labels.flatten(), reduction="sum")
    return float((total / windows.tokens).exp())


@pytest.mark.slow
def test_smollm2_finds_the_default_text_likely_and_shuffled_tokens_not():
    tokens = tokenize(smollm2_tokenizer(), default_text())
    assert 8 < perplexity(tokens, 3) < 30
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(0))
    assert perplexity(tokens[order], 1) > 1000


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize(
    ("word_rule", "text", "expected"),
    [
        ("smollm", "ab  12", ["ab", "ĠĠ", "1", "2"]),
        ("starcoder", "ab  12", ["ab", "ĠĠ", "1", "2"]),
        ("gpt-2", "ab  12", ["ab", "Ġ", "Ġ", "12"]),
        ("qwen2", "ab12", ["ab", "1", "2"]),
        ("llama-bpe", "ab1212", ["ab", "12", "1", "2"]),
    ],
)
def test_a_gguf_tokenizer_cuts_words_by_the_rule_that_the_file_names(
    tmp_path: Path, family: str, word_rule: str, text: str, expected: list[str]
):
    assert words(tiny_gguf(tmp_path, word_rule, family), text) == expected


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("word_rule", ["never-heard-of", "default", None])
def test_a_rule_that_is_not_known_is_refused(tmp_path: Path, word_rule: str | None):
    with pytest.raises(ModelError, match=f"by the rule {word_rule!r} .* which is not known"):
        words(tiny_gguf(tmp_path, word_rule), "")


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(("word_rule", "whole"), [("llama-bpe", True), ("smollm", False)])
def test_rules_that_look_up_whole_words_first_do(tmp_path: Path, word_rule: str, whole: bool):
    tokenizer = load_tokenizer(locate_model(str(tiny_gguf(tmp_path, word_rule))))
    assert tokenizer.backend_tokenizer.model.ignore_merges is whole


def test_the_tokenizer_of_a_directory_is_loaded_silently(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    tiny_model("llama").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    capfd.readouterr()
    assert words(tmp_path, "ab  12") == ["ab", "Ġ", "Ġ", "12"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("class_name", ["GPT2Tokenizer", "LlamaTokenizerFast", "Qwen2Tokenizer"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_words_are_those_of_the_tokenizer_file_whatever_class_is_named_beside_it(
    tmp_path: Path, family: str, class_name: str
):
    tiny_model(family).save_pretrained(tmp_path)
    saved = tiny_tokenizer()
    saved.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), saved.backend_tokenizer.pre_tokenizer]
    )
    saved.save_pretrained(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tokenizer_class": class_name}))
    assert words(tmp_path, "ab  12") == ["ab", "ĠĠ", "1", "2"]
    loaded = load_tokenizer(locate_model(str(tmp_path)))
    assert (loaded.bos_token_id, loaded.eos_token_id) == (0, 1)
    assert len(loaded) == len(saved)


def test_a_tokenizer_of_words_need_not_know_all(tmp_path: Path):
    tiny_model("llama").save_pretrained(tmp_path)
    backend = Tokenizer(models.WordLevel({"the": 0, "cat": 1}))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(tmp_path)
    assert words(tmp_path, "the cat") == ["the", "cat"]
    assert not adds_bos(load_tokenizer(locate_model(str(tmp_path))))


def test_a_directory_without_a_tokenizer_is_refused(tmp_path: Path):
    tiny_model("gpt2").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"has no tokenizer: needed tokenizer\.json"):
        load_tokenizer(locate_model(str(tmp_path)))


def test_a_damaged_tokenizer_is_refused(tmp_path: Path):
    tiny_model("llama").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match=r"tokenizer of .* cannot be loaded"):
        load_tokenizer(locate_model(str(tmp_path)))
