"""Tokens from all files that may name some: ids are AutoTokenizer's, or a difference is named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from runtime.language.models import ModelError, check_token_ids, load_tokenizer, locate_model
from runtime.language.text import tokenize
from tests.support.tiny_models import VOCABULARY, tiny_model, tiny_tokenizer

TEXT = "ab <extra> 12<extra>ab<s><tool>"
CHANGE = Callable[[Path], object]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    place = tmp_path / "model"
    tiny_model("llama").save_pretrained(place)
    tiny_tokenizer().save_pretrained(place)
    return place


def entry(content: str, **changes: bool) -> dict[str, Any]:
    flags = ("lstrip", "rstrip", "normalized", "single_word")
    return {"content": content, **dict.fromkeys(flags, False), "special": True, **changes}


def write(directory: Path, file: str, **content: object) -> None:
    path = directory / file
    before = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(before | content))


def configure(**content: object) -> CHANGE:
    return lambda directory: write(directory, "tokenizer_config.json", **content)


def decoder(*tokens: tuple[int, dict[str, Any]]) -> dict[str, object]:
    return {"0": entry("<s>"), "1": entry("</s>"), **{str(i): token for i, token in tokens}}


def refusal(directory: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_tokenizer(locate_model(str(directory)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


EXTRA = (261, entry("<extra>"))
SOURCES: dict[str, tuple[CHANGE, list[int]]] = {
    "none": (lambda _: None, []),
    "added_tokens_decoder": (configure(added_tokens_decoder=decoder(EXTRA)), [261, 261]),
    "stripping": (
        configure(added_tokens_decoder=decoder((261, entry("<extra>", lstrip=True, rstrip=True)))),
        [261, 261],
    ),
    "two": (
        configure(added_tokens_decoder=decoder(EXTRA, (262, entry("<tool>", special=False)))),
        [261, 261, 262],
    ),
    "extra_special_tokens": (configure(extra_special_tokens=["<extra>"]), [261, 261]),
    "named": (configure(extra_special_tokens={"image_token": "<extra>"}), [261, 261]),
    "additional": (configure(additional_special_tokens=["<extra>"]), [261, 261]),
    "pad_token": (configure(pad_token="<extra>"), [261, 261]),
    "added_tokens.json": (lambda d: write(d, "added_tokens.json", **{"<extra>": 261}), [261, 261]),
    "special_tokens_map.json": (
        lambda d: write(d, "special_tokens_map.json", additional_special_tokens=["<extra>"]),
        [261, 261],
    ),
}


@pytest.mark.parametrize("source", SOURCES)
def test_added_tokens_are_those_of_auto_tokenizer_whatever_file_names_them(
    directory: Path, source: str, capfd: pytest.CaptureFixture[str]
):
    change, added = SOURCES[source]
    change(directory)
    tokenizer = load_tokenizer(locate_model(str(directory)))
    ids = tokenize(tokenizer, TEXT).tolist()
    theirs = AutoTokenizer.from_pretrained(directory)
    assert ids == theirs(TEXT, add_special_tokens=False)["input_ids"]
    assert [token for token in ids if token >= VOCABULARY] == added
    assert ids.count(0) == 1  # <s>
    assert "AutoTokenizer" not in capfd.readouterr().err


def test_special_tokens_are_split_where_the_configuration_says_so(directory: Path):
    configure(split_special_tokens=True)(directory)
    ids = tokenize(load_tokenizer(locate_model(str(directory))), TEXT).tolist()
    theirs = AutoTokenizer.from_pretrained(directory)
    assert ids == theirs(TEXT, add_special_tokens=False)["input_ids"]
    assert 0 not in ids


@pytest.mark.parametrize(
    ("change", "declared", "found"),
    [
        (configure(added_tokens_decoder=decoder((300, entry("<extra>")))), 300, 261),
        (configure(added_tokens_decoder=decoder((5, entry("<extra>")))), 5, 261),
        (lambda d: write(d, "added_tokens.json", **{"<extra>": 270}), 270, 261),
    ],
)
def test_an_added_token_that_gets_another_id_than_its_files_say_is_refused(
    directory: Path, change: CHANGE, declared: int, found: int
):
    change(directory)
    message = f"declares that the added token '<extra>' is {declared}, and it comes to be {found}"
    assert message in refusal(directory)


def test_a_list_of_tokens_that_transformers_passes_over_is_not_passed_over_in_silence(
    directory: Path,
):
    configure(added_tokens_decoder=decoder())(directory)
    write(directory, "added_tokens.json", **{"<extra>": 261})
    theirs = AutoTokenizer.from_pretrained(directory)
    assert 261 not in theirs(TEXT, add_special_tokens=False)["input_ids"]
    assert "the added token '<extra>' is 261, and it comes to be None" in refusal(directory)


def test_a_class_that_would_cut_text_otherwise_than_the_tokenizer_file_is_named(
    directory: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("RANK", raising=False)
    configure(tokenizer_class="GPT2Tokenizer")(directory)
    capfd.readouterr()
    load_tokenizer(locate_model(str(directory)))
    assert capfd.readouterr() == (
        "",
        f"the tokens of {directory} are those of its tokenizer.json; AutoTokenizer would build "
        "GPT2Tokenizer instead, which gives others for 'a<|endoftext|>b'\n",
    )
    monkeypatch.setenv("RANK", "1")
    load_tokenizer(locate_model(str(directory)))
    assert capfd.readouterr() == ("", "")


def test_the_ends_of_a_text_that_only_the_class_knows_are_kept(directory: Path):
    config, file = directory / "tokenizer_config.json", directory / "tokenizer.json"
    config.write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    file.write_text(file.read_text().replace("</s>", "<|endoftext|>"))
    tokenizer = load_tokenizer(locate_model(str(directory)))
    theirs = AutoTokenizer.from_pretrained(directory)
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == theirs.eos_token_id == 1


def test_merges_are_never_dropped_at_random(directory: Path):
    path = directory / "tokenizer.json"
    whole = json.loads(path.read_text())
    whole["model"]["dropout"] = 0.9
    path.write_text(json.dumps(whole))
    ids = tokenize(load_tokenizer(locate_model(str(directory))), "ab" * 200).tolist()
    assert ids == [258] * 200


def test_a_tokenizer_of_sentencepiece_without_it_says_what_to_install(
    directory: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("runtime.language.models.tokenizers.loading.find_spec", lambda _: None)
    (directory / "tokenizer.json").rename(directory / "tokenizer.model")
    assert refusal(directory).endswith(
        "tokenizer.model can only be read with sentencepiece, which is not installed: pip install "
        "sentencepiece protobuf brings it; a tokenizer.json beside it would do as well"
    )


def test_a_vocabulary_without_its_merges_is_refused(directory: Path):
    whole = json.loads((directory / "tokenizer.json").read_text())
    (directory / "tokenizer.json").unlink()
    (directory / "vocab.json").write_text(json.dumps(whole["model"]["vocab"]))
    assert "it has vocab.json, and merges.txt or tokenizer.json is needed" in refusal(directory)


def test_an_added_token_without_an_embedding_is_named(directory: Path):
    configure(extra_special_tokens=["<extra>"])(directory)
    files = locate_model(str(directory))
    tokens = tokenize(load_tokenizer(files), TEXT)
    with pytest.raises(ModelError) as caught:
        check_token_ids(files, tokens)
    assert str(caught.value) == (
        f"the tokenizer of {directory} gives the token 261, and the model knows 261 tokens from 0 "
        "on: '<extra>' was added to the tokenizer, is in the text, and has no embedding in this "
        "model"
    )
    with pytest.raises(ModelError, match="it is the tokenizer of another model"):
        check_token_ids(files, torch.tensor([5000]))


def test_a_tokenizer_that_panics_is_refused(directory: Path):
    whole = json.loads((directory / "tokenizer.json").read_text())
    second = {"Sequence": {"id": "B", "type_id": 0}}  # of a pair, and there is none
    whole["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [second],
        "pair": [second],
        "special_tokens": {},
    }
    (directory / "tokenizer.json").write_text(json.dumps(whole))
    assert "cannot be loaded: index out of bounds" in refusal(directory)
