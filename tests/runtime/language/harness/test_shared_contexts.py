"""The benchmark of shared contexts, small and with a tiny model."""

import pytest

from benchmarks.shared_contexts.contenders import distinct_positions, measured
from benchmarks.shared_contexts.questions import requests
from runtime.language.harness import SchedccLM
from runtime.language.scoring.batching import MOST_PADDING
from tests.support.tiny_models import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    path = tmp_path_factory.mktemp("llama")
    tiny_model("llama", max_position_embeddings=4096).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    apart, shared = (
        SchedccLM(pretrained=str(path), threads=1, share_contexts=share) for share in (False, True)
    )
    measured(shared, [("a", " b")])  # whether contexts can be shared is found out once
    yield apart, shared
    apart.close()
    shared.close()


@pytest.mark.parametrize("same_examples", [False, True])
@pytest.mark.parametrize("task", ["letters", "texts"])
def test_shared_positions_are_computed_once_and_the_same_answers_chosen(
    models, task, same_examples
):
    asked = requests(task, 2, 2, same_examples=same_examples)
    apart, shared = (measured(model, asked) for model in models)
    assert shared.log_probs == pytest.approx(apart.log_probs, abs=1e-3)
    assert shared.chosen == apart.chosen
    if task == "letters":  # the four of an item have the same inputs
        assert apart.positions / 4 <= apart.computed <= apart.positions / 4 / (1 - MOST_PADDING)
    else:
        assert apart.positions <= apart.computed
    assert shared.distinct <= shared.computed <= shared.distinct / (1 - MOST_PADDING)


def test_positions_after_the_same_tokens_are_one():
    assert distinct_positions([(1, 2), (1, 2, 3), (1, 2), (1, 4), (5, 2)]) == 6
