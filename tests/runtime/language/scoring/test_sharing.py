"""Sequences that begin alike, as one row."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, MistralConfig

from runtime.language.scoring.batching import micro_batches, rows_of
from runtime.language.scoring.pairs import TokenPair
from runtime.language.scoring.sharing import require_full_attention, shared
from runtime.language.scoring.trees import tree_inputs

TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=6)
PAIRS = st.lists(st.builds(TokenPair, TOKENS, TOKENS), min_size=1, max_size=30)


def test_the_mask_and_the_positions_of_a_tree_are_those_of_its_sequences():
    inputs = tree_inputs([[-1, 0, 1, 2, 1, 4], [-1]], length=7)
    mask = inputs["attention_mask"][0, 0].int().tolist()
    assert mask == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0],
        [1, 1, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 0, 1],
    ]
    assert inputs["position_ids"].tolist() == [[0, 1, 2, 3, 2, 3, 0], [0] * 7]
    assert inputs["attention_mask"][1, 0].int().tolist() == [
        [int(a == b) for a in range(7)] for b in range(7)
    ]


@given(pairs=PAIRS, max_tokens=st.integers(1, 40))
def test_each_question_sees_the_tokens_before_it_and_no_others(pairs, max_tokens):
    rows = shared(rows_of(pairs), max_tokens=max_tokens)
    asked: list[list[tuple[tuple[int, ...], int]]] = [[] for _ in pairs]
    for batch in micro_batches(rows, max_tokens=max_tokens):
        inputs, label = batch.inputs(), batch.label()
        for pair, question, target in zip(
            batch.answers(), label.questions.tolist(), label.targets.tolist(), strict=True
        ):
            row, place = divmod(int(label.positions[question]), batch.length)
            seen = range(place + 1)
            if "attention_mask" in inputs:
                seen = inputs["attention_mask"][row, 0, place].nonzero()[:, 0].tolist()
                positions = inputs["position_ids"][row, seen].tolist()
                assert positions == list(range(len(seen)))
            tokens = tuple(inputs["input_ids"][row, place].item() for place in seen)
            asked[pair].append((tokens, target))
    for pair, found in zip(pairs, asked, strict=True):
        tokens = pair.context + pair.continuation
        places = range(len(pair.context), len(tokens))
        assert sorted(found, key=lambda one: len(one[0])) == [
            (tokens[:place], tokens[place]) for place in places
        ]


@given(pairs=PAIRS, max_tokens=st.integers(1, 40))
def test_sharing_never_computes_more_and_keeps_rows_short(pairs, max_tokens):
    apart = rows_of(pairs)
    rows = shared(apart, max_tokens=max_tokens)
    assert sum(len(row.tokens) for row in rows) <= sum(len(row.tokens) for row in apart)
    longest = max(len(row.tokens) for row in apart)
    assert all(len(row.tokens) <= max(max_tokens, longest) for row in rows)


def test_four_answers_to_a_long_question_share_it():
    question = list(range(100))
    rows = rows_of(TokenPair(question, [200 + n, 7, 8]) for n in range(4))
    (row,) = shared(rows, max_tokens=500)
    assert len(row.tokens) == 100 + 4 * 2


def test_layers_that_do_not_see_all_tokens_are_refused():
    require_full_attention("llama", LlamaConfig())
    require_full_attention("mistral", MistralConfig(sliding_window=None))
    with pytest.raises(ValueError, match="sets sliding_window to 4096"):
        require_full_attention("mistral", MistralConfig(sliding_window=4096))
    config = LlamaConfig()
    config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(ValueError, match="of the types"):
        require_full_attention("hybrid", config)
