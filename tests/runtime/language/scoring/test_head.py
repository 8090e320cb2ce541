"""The head, applied only to the positions that somebody asks about."""

from types import SimpleNamespace

import torch
from torch import nn

from runtime.language.models import PendingLogits, ScoringLayer
from runtime.language.models.split.scores import LOGITS_AT_ONCE, positions_at_once
from runtime.language.scoring.batching import micro_batches, rows_of
from runtime.language.scoring.head import answers, next_tokens
from runtime.language.scoring.pairs import TokenPair

HIDDEN, VOCABULARY = 8, 50


class Head(nn.Linear):
    """A head that remembers how many positions it was applied to."""

    vocabulary = VOCABULARY

    def logits(self, hidden):
        self.__dict__.setdefault("sizes", []).append(hidden.numel() // HIDDEN)
        return self(hidden)


def some_batch():
    torch.manual_seed(0)
    pairs = [TokenPair(range(22 - n), [7, 11, 11 + n][: 1 + n]) for n in range(3)]
    (batch,) = micro_batches(rows_of(pairs), max_tokens=100, max_rows=3)
    return batch, torch.randn(3, batch.length, HIDDEN)


def test_pieces_give_the_log_probabilities_of_the_whole():
    batch, hidden = some_batch()
    head, label = Head(HIDDEN, VOCABULARY), batch.label()
    output = PendingLogits(hidden, head)
    whole = head(hidden).log_softmax(-1).flatten(0, 1)[label.positions][label.questions]
    for positions in (1, 2, 4, 1000):
        found = answers(output, label, logits_at_once=positions * VOCABULARY)
        wanted = whole.gather(1, label.targets.unsqueeze(1)).squeeze(1).double()
        torch.testing.assert_close(found[:, 0], wanted, rtol=0, atol=1e-6)
        assert found[:, 1].tolist() == (whole.argmax(-1) == label.targets).double().tolist()
        assert max(head.sizes) <= positions
        assert sum(head.sizes) == len(label.positions) == 6
        head.sizes.clear()


def test_the_pieces_of_a_large_vocabulary_are_small():
    def positions(vocabulary):
        hidden = torch.empty(1, 1, 1)
        head = SimpleNamespace(vocabulary=vocabulary)
        return positions_at_once(PendingLogits(hidden, head), LOGITS_AT_ONCE)

    assert positions(128_000) * 128_000 * 4 <= 64 * 2**20
    assert positions(10**9) == 1


def test_hidden_states_pass_through():
    _, hidden = some_batch()
    head = SimpleNamespace(lm=nn.Identity())
    assert ScoringLayer(head)(hidden).hidden is hidden


def test_next_tokens_are_the_most_probable_ones():
    batch, hidden = some_batch()
    head = Head(HIDDEN, VOCABULARY)
    output = PendingLogits(hidden, head)
    found = next_tokens(output, batch.last_positions(), logits_at_once=2 * VOCABULARY)
    wanted = head(hidden).flatten(0, 1)[batch.last_positions()].argmax(-1)
    assert found.tolist() == wanted.tolist()


def test_the_softmax_has_the_dtype_that_is_asked_for():
    batch, hidden = some_batch()
    label, head = batch.label(), Head(HIDDEN, VOCABULARY, dtype=torch.bfloat16)
    output = PendingLogits(hidden.bfloat16(), head)
    coarse = answers(output, label)[:, 0]
    fine = answers(output, label, softmax_dtype=torch.float32)[:, 0]
    assert (coarse == coarse.bfloat16().double()).all()
    assert not (fine == fine.bfloat16().double()).all()
