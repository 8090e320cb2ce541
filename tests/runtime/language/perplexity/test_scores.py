"""What is made of the losses of tokens, against the plain model and plain arithmetic."""

import math
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch

from runtime.language.models import Targets
from runtime.language.perplexity.outputs import document_scores, token_scores
from runtime.language.perplexity.reference import token_losses
from runtime.language.perplexity.scores import (
    LossCollector,
    TokenScores,
    exact_loss,
    standard_error,
)
from runtime.language.text import Documents, Text, Windows, tokenize_documents
from tests.support.tiny_models import tiny_model, tiny_tokenizer

TEXTS = [Text("first", "ab ab 12 naïve\nthe quick brown fox"), Text("second:7", "漢字 12 ab", True)]
CPU = torch.device("cpu")


@cache
def model() -> torch.nn.Module:
    return tiny_model("llama")


def nats(context: list[int], token: int) -> float:
    """Of one token, by the model on the context alone, without batches or windows."""
    with torch.no_grad():
        logits = model()(input_ids=torch.tensor([context])).logits[0, -1]
    return -float(logits.double().log_softmax(0)[token])


def scored(documents: Documents, length: int, stride: int | None = None) -> TokenScores:
    windows = Windows(documents, length, 3, stride=stride)
    scores = TokenScores(windows)
    collect = LossCollector(CPU, scores.add)
    with torch.no_grad():
        for inputs, labels in windows:
            collect(model()(input_ids=inputs).logits, Targets.of(labels))
    collect.finish()
    return scores


@pytest.mark.parametrize("mode", ["whole", "texts", "lines", "packed"])
@pytest.mark.parametrize("bos", [True, False])
def test_every_number_is_that_of_the_plain_model(mode: str, bos: bool):
    tokenizer = tiny_tokenizer()
    documents = tokenize_documents(tokenizer, TEXTS, documents=mode, bos=bos)
    scores = scored(documents, 8, 3)
    bounds = documents.starts.tolist()
    rows = [*pairwise(bounds)]
    if mode == "packed":
        rows = [(0, bounds[-1])]
    tokens, room = documents.tokens.tolist(), 8 - bos
    separators = set(bounds[:-1]) if mode != "whole" else set()
    expected = {}
    for first, end in rows:
        for at in range(first, end):
            # The first window that holds the token predicts it.
            start = first + 3 * max(0, -(-(at + 1 - first - room) // 3))
            led = [0] if bos and start not in separators else []
            context = led + tokens[start:at]
            if context and at not in separators:
                expected[at] = nats(context, tokens[at])
    found = scores.losses
    places = (~found.isnan()).nonzero().flatten().tolist()
    assert places == sorted(expected)
    assert found[places].tolist() == pytest.approx([expected[at] for at in places], rel=1e-5)
    assert exact_loss(found) == math.fsum(found[places].tolist())
    assert scores.running()[0] == pytest.approx(exact_loss(found) / len(places))

    by_token = list(token_scores(documents, found, tokenizer))
    assert [score.loss for score in by_token] == found[places].tolist()
    assert [score.token_id for score in by_token] == [tokens[at] for at in places]
    for number, score in enumerate(document_scores(documents, found)):
        own = [token for token in by_token if token.document == score.document]
        assert score.tokens == len(own)
        assert score.negative_log_likelihood == math.fsum(token.loss for token in own)
        assert score.loss == score.negative_log_likelihood / len(own)
        if mode != "whole" and not (mode == "packed" and number == 0):
            lines = "\n".join(t.content for t in TEXTS).split("\n")
            texts = lines if mode in ("lines", "packed") else [t.content for t in TEXTS]
            text = texts[score.document]
            assert (score.bytes, score.words) == (len(text.encode()), len(text.split()))


def test_the_standard_error_is_that_of_a_ratio_of_means_over_windows():
    rng = np.random.default_rng(0)
    targets = rng.integers(1, 20, 4000)
    sums = targets * 3 + rng.normal(0, 2, 4000)
    found = standard_error(torch.from_numpy(sums), torch.from_numpy(targets))
    draws = rng.integers(0, 4000, (2000, 4000))
    bootstrap = np.std(sums[draws].sum(1) / targets[draws].sum(1))
    assert found == pytest.approx(bootstrap, rel=0.1)
    assert standard_error(torch.ones(1), torch.ones(1)) is None


def test_equal_windows_have_the_textbook_standard_error_of_a_mean():
    sums = torch.tensor([1.0, 2.0, 4.0, 9.0], dtype=torch.float64)
    expected = float(np.std(sums.numpy(), ddof=1)) / math.sqrt(4)
    assert standard_error(sums, torch.ones(4)) == pytest.approx(expected)


def test_windows_are_summed_each_by_itself():
    documents = tokenize_documents(tiny_tokenizer(), TEXTS, documents="lines")
    scores = scored(documents, 8)
    windows = Windows(documents, 8, 3)
    sums, targets = windows.sums(scores.losses)
    assert float(sums.sum()) == pytest.approx(exact_loss(scores.losses))
    assert int(targets.sum()) == windows.tokens
    error = scores.running()[1]
    assert error == pytest.approx(standard_error(sums, targets))


def test_losses_that_are_ignored_are_zero():
    labels = torch.tensor([[1, -100]])
    found = token_losses(torch.zeros(1, 2, 4), labels)
    assert found.tolist() == pytest.approx([math.log(4), 0])
