"""Long texts are tokenized in pieces, and the tokens are those of the whole text."""

import pydoc_data.topics
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from runtime.language.models import load_tokenizer, locate_model
from runtime.language.text import encoding
from runtime.language.text.encoding import encode, encode_beginning
from runtime.language.text.errors import TextError
from tests.support.tiny_models import tiny_tokenizer

TOPICS = " ".join(pydoc_data.topics.topics.values())[:60_000]
"""Text of words, numbers, code and tables."""


@pytest.fixture(scope="module")
def smollm2():
    return load_tokenizer(locate_model("smollm2"))


def metaspace():
    """Of words that begin with a space, and of a text that has one put before it."""
    words = sorted({word[:n] for word in ("▁the", "▁a", "▁12", "1234") for n in range(1, 6)})
    vocabulary = [("<unk>", 0.0), *((word, -1.0) for word in words), *((c, -3.0) for c in "etha▁b")]
    backend = Tokenizer(models.Unigram(vocabulary, 0))
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


def in_pieces(tokenizer, text, length, overlap, monkeypatch):
    """A text's tokens by pieces of so many characters, and those of the whole."""
    whole = encode(tokenizer, [text])[0]
    with monkeypatch.context() as changed:
        changed.setattr(encoding, "PIECE", length)
        changed.setattr(encoding, "OVERLAP", overlap)
        found = encode(tokenizer, [text])[0]
    return found, whole


def require_same(found, whole):
    assert torch.equal(found.ids, whole.ids)
    assert torch.equal(found.sizes, whole.sizes)


def seen(monkeypatch):
    """Notes the lengths of what a tokenizer is given."""
    lengths = []
    one = encoding._found

    def found(tokenizer, texts):
        lengths.extend(map(len, texts))
        return one(tokenizer, texts)

    monkeypatch.setattr(encoding, "_found", found)
    return lengths


@pytest.mark.parametrize("length", [2_000, 5_003, 20_000])
def test_pieces_have_the_tokens_of_the_whole_text(length, smollm2, monkeypatch):
    for tokenizer in (smollm2, tiny_tokenizer(), metaspace()):
        lengths = seen(monkeypatch)
        require_same(*in_pieces(tokenizer, TOPICS, length, 700, monkeypatch))
        assert max(lengths[1:]) == length, "the first is the whole text"


PARTS = [
    "the ",
    "a",
    "1234",
    " ",
    "\n",
    "naïve ",
    "漢字",
    "。",
    "🙂",
    "e" * 90,
    "12 " * 40,
    "<s>",
    ".",
]


@given(st.lists(st.tuples(st.sampled_from(PARTS), st.integers(1, 30)), min_size=20, max_size=80))
def test_whatever_a_text_is_made_of_its_pieces_have_its_tokens(parts):
    text = "".join(part * times for part, times in parts)
    with pytest.MonkeyPatch.context() as monkeypatch:
        for tokenizer in (tiny_tokenizer(), metaspace()):
            require_same(*in_pieces(tokenizer, text, 600, 300, monkeypatch))


def test_a_text_without_ends_of_words_is_one_piece(monkeypatch):
    lengths = seen(monkeypatch)
    require_same(*in_pieces(tiny_tokenizer(), "ab" * 3000, 1000, 400, monkeypatch))
    assert max(lengths[1:]) >= 6000


def test_a_small_file_that_holds_one_endless_word_takes_no_memory_without_bound(monkeypatch):
    monkeypatch.setattr(encoding, "PIECE", 1000)
    monkeypatch.setattr(encoding, "OVERLAP", 400)
    monkeypatch.setattr(encoding, "LONGEST", 4000)
    lengths = seen(monkeypatch)
    said = r"characters 0 to 4000 of the text hold no end of a word .* within 4000 characters"
    with pytest.raises(TextError, match=said):
        encode(tiny_tokenizer(), ["ab" * 30_000])
    assert max(lengths) == 4000


def test_pieces_grow_over_a_word_that_is_longer_than_their_overlap(monkeypatch):
    text = "the a 12 " * 300 + "e" * 2500 + " the a 12" * 600
    lengths = seen(monkeypatch)
    require_same(*in_pieces(tiny_tokenizer(), text, 1000, 400, monkeypatch))
    assert 2500 < max(lengths[1:]) < len(text) - 2000


def test_the_beginning_is_that_of_the_whole_for_any_number_of_tokens(monkeypatch):
    whole = encode(tiny_tokenizer(), [TOPICS])[0]
    monkeypatch.setattr(encoding, "PIECE", 3000)
    monkeypatch.setattr(encoding, "OVERLAP", 1000)
    counts = [1, 10, 500, 3000, len(whole.ids)]
    found = [encode_beginning(tiny_tokenizer(), TOPICS, tokens) for tokens in counts]
    for tokens, part in zip(counts, found, strict=True):
        assert len(part.ids) >= tokens
        assert torch.equal(part.ids, whole.ids[: len(part.ids)])
        assert torch.equal(part.sizes, whole.sizes[: len(part.ids)])
    assert all(len(a.ids) <= len(b.ids) for a, b in pairwise(found))


def test_a_tokenizer_that_fails_is_an_error_of_the_text():
    backend = Tokenizer(models.WordLevel({"the": 0}))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert encode(tokenizer, ["the the"])[0].ids.tolist() == [0, 0]
    with pytest.raises(TextError, match=r"the tokenizer cannot encode the text: .*UNK"):
        encode(tokenizer, ["the cat"])
