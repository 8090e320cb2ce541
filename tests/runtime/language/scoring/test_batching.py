"""Micro-batches of sequences whose lengths differ, and the questions about them."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runtime.language.scoring import batching
from runtime.language.scoring.batching import (
    FEW_TOKENS,
    MICRO_BATCHES,
    MOST_PADDING,
    micro_batches,
    rows_of,
)
from runtime.language.scoring.pairs import TokenPair

TOKENS = st.lists(st.integers(0, 3), min_size=1, max_size=6)
PAIRS = st.lists(st.builds(TokenPair, TOKENS, TOKENS), min_size=1, max_size=30)


@given(pairs=PAIRS, max_tokens=st.integers(1, 40), max_rows=st.none() | st.integers(1, 4))
def test_every_token_of_every_continuation_is_asked_about_at_its_place(pairs, max_tokens, max_rows):
    asked: list[list[tuple[tuple[int, ...], int]]] = [[] for _ in pairs]
    for batch in micro_batches(rows_of(pairs), max_tokens=max_tokens, max_rows=max_rows):
        ids, label = batch.input_ids(), batch.label()
        for pair, question, target in zip(
            batch.answers(), label.questions.tolist(), label.targets.tolist(), strict=True
        ):
            row, place = divmod(int(label.positions[question]), batch.length)
            asked[pair].append((tuple(ids[row, : place + 1].tolist()), target))
    for pair, found in zip(pairs, asked, strict=True):
        tokens = pair.context + pair.continuation
        places = range(len(pair.context), len(tokens))
        assert found == [(tokens[:place], tokens[place]) for place in places]


@given(pairs=PAIRS, max_tokens=st.integers(1, 40), max_rows=st.none() | st.integers(1, 4))
def test_micro_batches_keep_to_their_limits(pairs, max_tokens, max_rows):
    rows = rows_of(pairs)
    batches = micro_batches(rows, max_tokens=max_tokens, max_rows=max_rows)
    assert sorted(row.tokens for batch in batches for row in batch.rows) == sorted(
        row.tokens for row in rows
    )
    for batch in batches:
        size = len(batch.rows) * batch.length
        assert size <= max_tokens or len(batch.rows) == 1
        assert max_rows is None or len(batch.rows) <= max_rows
        assert size - batch.tokens <= MOST_PADDING * size
    assert all(a.length >= b.length for a, b in pairwise(batches))


def test_two_thousand_different_lengths_are_hardly_padded():
    rows = rows_of(TokenPair([1] * length, [2]) for length in range(1, 2001))
    batches = micro_batches(rows, max_tokens=16384)
    padded = sum(len(batch.rows) * batch.length for batch in batches)
    tokens = sum(batch.tokens for batch in batches)
    assert (padded - tokens) / padded < 0.05
    assert len(batches) < 500


def test_a_short_run_has_micro_batches_enough_to_keep_several_stages_busy(monkeypatch):
    monkeypatch.setattr(batching, "MAX_TOKENS", 8192)

    def sizes(length, number):
        rows = rows_of(TokenPair([n, *[1] * (length - 1)], [2]) for n in range(number))
        return [len(batch.rows) for batch in micro_batches(rows)]

    assert sizes(length=128, number=64) == [FEW_TOKENS // 128] * 16
    assert sizes(length=1024, number=64) == [2] * MICRO_BATCHES
    assert sizes(length=1024, number=512) == [8] * 64


def test_a_number_of_tokens_that_is_given_is_kept_in_a_short_run():
    rows = rows_of(TokenPair([n, *[1] * 127], [2]) for n in range(64))
    (batch,) = micro_batches(rows, max_tokens=64 * 128)
    assert len(batch.rows) == 64


def test_without_padding_a_micro_batch_has_rows_of_one_length():
    rows = rows_of(TokenPair([n, *[1] * (50 + n % 3)], [2]) for n in range(9))
    batches = micro_batches(rows, most_padding=0.0)
    assert [[len(row.tokens) for row in batch.rows] for batch in batches] == [
        [53] * 3,
        [52] * 3,
        [51] * 3,
    ]


def test_answers_with_the_same_inputs_are_computed_once():
    context = [5, 6, 7]
    rows = rows_of([*(TokenPair(context, [answer]) for answer in range(4)), TokenPair([5], [6, 7])])
    assert [row.tokens for row in rows] == [(5, 6, 7), (5, 6)]
    (batch,) = micro_batches(rows[:1], max_tokens=100)
    assert batch.inputs().keys() == {"input_ids"}
    assert batch.input_ids().tolist() == [context]
    assert batch.label().positions.tolist() == [2]
    assert batch.label().targets.tolist() == [0, 1, 2, 3]


def test_rows_are_padded_at_their_ends_and_asked_for_their_last_token():
    rows = rows_of(TokenPair([1] * length, [2]) for length in (20, 19))
    (batch,) = micro_batches(rows, max_tokens=100)
    assert batch.input_ids().shape == (2, 20)
    assert batch.input_ids()[1].tolist() == [1] * 19 + [0]
    assert batch.last_positions().tolist() == [19, 38]
    assert batch.input_ids().dtype == torch.int64


@pytest.mark.parametrize(("context", "continuation"), [([], [1]), ([1], [])])
def test_a_pair_needs_a_context_and_a_continuation(context, continuation):
    with pytest.raises(ValueError, match="is empty, needed at least one token"):
        TokenPair(context, continuation)
