"""Sequences that begin alike, as one row."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, MistralConfig

from runtime.language.models import split_causal_lm
from runtime.language.scoring.batching import MicroBatch, micro_batches, rows_of
from runtime.language.scoring.pairs import TokenPair
from runtime.language.scoring.sharing import (
    common_prefix_length,
    merge_prefixes,
    require_full_attention,
    shared,
)
from runtime.language.scoring.stage import stage_data
from runtime.language.scoring.trees import tree_inputs
from tests.support.tiny_models import tiny_model

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


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_any_attention_heeds_the_mask_of_a_tree(attention):
    model = tiny_model("llama")
    model.set_attn_implementation(attention)
    first, *layers = split_causal_lm(model)
    rows = rows_of([TokenPair([5, 6, 7, 8], answer) for answer in ([9, 10, 11], [12, 13, 14])])
    (row,) = shared(rows, max_tokens=20)
    (batch,) = micro_batches([row], max_tokens=20)
    with torch.inference_mode():
        found = first(**batch.inputs())
        for layer in layers:
            found = layer(found)
        for apart in rows:
            (asked,) = [one for one in row.asked if one.pair == apart.asked[0].pair]
            wanted = model(torch.tensor([apart.tokens])).logits[0, -len(asked.places) :]
            torch.testing.assert_close(found[0, asked.places], wanted, rtol=0, atol=1e-5)


@given(pairs=PAIRS, max_tokens=st.integers(1, 40), tree=st.booleans())
def test_each_question_sees_the_tokens_before_it_and_no_others(pairs, max_tokens, tree):
    apart = rows_of(pairs)
    rows = shared(apart, max_tokens=max_tokens) if tree else merge_prefixes(apart)
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
    for row in rows:
        parents = row.parents or range(-1, len(row.tokens) - 1)
        longest = 1 + int(tree_inputs([parents], len(row.tokens))["position_ids"].max())
        assert len(row.tokens) <= max(max_tokens, longest + longest // 4)


@given(pairs=PAIRS)
def test_a_sequence_with_which_another_one_begins_has_no_row_and_needs_no_mask(pairs):
    apart = rows_of(pairs)
    rows = merge_prefixes(apart)
    sequences = {row.tokens for row in apart}
    assert sorted(row.tokens for row in rows) == sorted(
        tokens
        for tokens in sequences
        if not any(tokens != other and tokens == other[: len(tokens)] for other in sequences)
    )
    assert not any(row.parents for row in rows)
    assert rows_of(pairs) == apart


@given(before=TOKENS, after=TOKENS)
def test_what_sequences_have_in_common_ends_where_they_differ(before, after):
    common = common_prefix_length(before, after)
    assert before[:common] == after[:common]
    assert before[common : common + 1] != after[common : common + 1] or before == after


def test_masks_are_made_when_they_are_needed(monkeypatch):
    made = []
    monkeypatch.setattr(MicroBatch, "inputs", made.append)
    batches = micro_batches(rows_of([TokenPair([1], [2]), TokenPair([1] * 9, [2])]), max_tokens=1)
    data = stage_data(batches, "score", first=True, last=True)
    assert made == []
    assert len(list(data.inputs)) == len(made) == len(batches) == 2


def test_four_answers_to_a_long_question_share_it():
    question = list(range(100))
    rows = rows_of(TokenPair(question, [200 + n, 7, 8]) for n in range(4))
    (row,) = shared(rows, max_tokens=500)
    assert len(row.tokens) == 100 + 4 * 2


def test_a_long_row_leaves_the_others_their_limit():
    context = list(range(400))
    asked = [TokenPair(context, [500 + n] * 100) for n in range(200)]
    rows = rows_of([*asked, TokenPair([0, *[1] * 10_000], [2])])
    lengths = [len(row.tokens) for row in shared(rows, max_tokens=2048)]
    assert sorted(lengths, reverse=True)[:2] == [10_001, 400 + 16 * 99]


def test_a_tree_is_no_longer_than_the_model_allows():
    rows = rows_of(TokenPair(range(100), [200 + n, 7, 8]) for n in range(20))
    assert max(len(row.tokens) for row in shared(rows, max_tokens=16)) == 100 + 13 * 2
    assert max(len(row.tokens) for row in shared(rows, max_tokens=16, limit=110)) == 100 + 5 * 2


def test_embeddings_that_depend_on_the_length_are_refused():
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    with pytest.raises(
        ValueError, match="share_contexts with llama, whose rotary embeddings depend"
    ):
        require_full_attention("llama", LlamaConfig(rope_parameters=rope))


def test_layers_that_do_not_see_all_tokens_are_refused():
    require_full_attention("llama", LlamaConfig())
    require_full_attention("mistral", MistralConfig(sliding_window=None))
    with pytest.raises(ValueError, match="sets sliding_window to 4096"):
        require_full_attention("mistral", MistralConfig(sliding_window=4096))
    config = LlamaConfig()
    config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(ValueError, match="of the types"):
        require_full_attention("hybrid", config)
