"""The head, applied only to the positions that somebody asks about."""

import torch
from torch import nn

from runtime.language.scoring.batching import micro_batches, rows_of
from runtime.language.scoring.head import ScoringHead
from runtime.language.scoring.pairs import TokenPair

HIDDEN, VOCABULARY = 8, 50


class Seen(nn.Linear):
    """Remembers how many positions it was applied to."""

    def forward(self, hidden):
        self.__dict__.setdefault("sizes", []).append(hidden.numel() // HIDDEN)
        return super().forward(hidden)


def some_batch():
    torch.manual_seed(0)
    pairs = [TokenPair(range(22 - n), [7, 11, 11 + n][: 1 + n]) for n in range(3)]
    (batch,) = micro_batches(rows_of(pairs), max_tokens=100, max_rows=3)
    return batch, torch.randn(3, batch.length, HIDDEN)


def test_pieces_give_the_log_probabilities_of_the_whole():
    batch, hidden = some_batch()
    head, label = Seen(HIDDEN, VOCABULARY), batch.label()
    scoring = ScoringHead(head, VOCABULARY)
    whole = head(hidden).log_softmax(-1).flatten(0, 1)[label.positions][label.questions]
    head.sizes.clear()
    for positions in (1, 2, 4, 1000):
        scoring.positions = positions
        answers = scoring.score(hidden, label)
        wanted = whole.gather(1, label.targets.unsqueeze(1)).squeeze(1).double()
        torch.testing.assert_close(answers[:, 0], wanted, rtol=0, atol=1e-6)
        assert answers[:, 1].tolist() == (whole.argmax(-1) == label.targets).double().tolist()
        assert max(head.sizes) <= positions
        assert sum(head.sizes) == len(label.positions) == 6
        head.sizes.clear()


def test_the_pieces_of_a_large_vocabulary_are_small():
    assert ScoringHead(nn.Identity(), 128_000).positions * 128_000 * 4 <= 64 * 2**20
    assert ScoringHead(nn.Identity(), 10**9).positions == 1


def test_hidden_states_pass_through():
    _, hidden = some_batch()
    assert ScoringHead(nn.Identity(), 4)(hidden) is hidden


def test_next_tokens_are_the_most_probable_ones():
    batch, hidden = some_batch()
    head = Seen(HIDDEN, VOCABULARY)
    scoring = ScoringHead(head, VOCABULARY)
    scoring.positions = 2
    found = scoring.next_tokens(hidden, batch.last_positions())
    wanted = head(hidden).flatten(0, 1)[batch.last_positions()].argmax(-1)
    assert found.tolist() == wanted.tolist()


def test_the_softmax_has_the_dtype_that_is_asked_for():
    batch, hidden = some_batch()
    label, head = batch.label(), nn.Linear(HIDDEN, VOCABULARY, dtype=torch.bfloat16)
    hidden = hidden.bfloat16()
    coarse = ScoringHead(head, VOCABULARY).score(hidden, label)[:, 0]
    fine = ScoringHead(head, VOCABULARY, torch.float32).score(hidden, label)[:, 0]
    assert (coarse == coarse.bfloat16().double()).all()
    assert not (fine == fine.bfloat16().double()).all()
