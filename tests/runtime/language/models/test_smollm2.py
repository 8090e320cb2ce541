"""The real model on real text: the number of stages changes neither loss nor logits."""

import math

import pytest
import torch

from runtime import EvalResult, Evaluator
from runtime.language.models import (
    layer_costs,
    load_causal_lm,
    load_tokenizer,
    locate_model,
    split_causal_lm,
)
from runtime.language.perplexity.reference import (
    LogitsDigests,
    Reference,
    count_tokens,
    next_token_loss,
    reference,
)
from runtime.language.text import Documents, Windows, default_text, tokenize
from runtime.modules.partition import balanced
from runtime.testing import InMemoryTransport, run_threads

LENGTH = 192


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return load_causal_lm(locate_model("smollm2"))


@pytest.fixture(scope="module")
def windows() -> Windows:
    """Three whole windows and a ragged one."""
    tokens = tokenize(load_tokenizer(locate_model("smollm2")), default_text()[:20_000])
    return Windows(Documents.whole(tokens[: 3 * LENGTH + 77]), LENGTH, micro_batch_size=2)


@pytest.fixture(scope="module")
def expected(model, windows) -> Reference:
    return reference(model, windows, next_token_loss, count_tokens)


@pytest.mark.slow
def test_one_process_finds_the_language_reference_likely(expected):
    assert 8 < math.exp(expected.loss) < 30


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_stages_give_the_bits_of_one_process(stages, model, windows, expected):
    layers = split_causal_lm(model)
    boundaries = balanced(layer_costs(layers, LENGTH - 1), stages)

    def stage(end: InMemoryTransport) -> tuple[EvalResult, list[str]]:
        torch.set_num_threads(1)
        evaluator = Evaluator(
            layers,
            loss_fn=next_token_loss,
            partition=boundaries,
            weight_fn=count_tokens,
            transport=end,
        )
        digests = LogitsDigests()
        data = windows if evaluator.is_first or evaluator.is_last else None
        return evaluator.evaluate(data, on_logits=digests), digests.digests

    results = run_threads(stages, stage, timeout=240)
    assert results[-1][1] == expected.digests
    for result, _ in results:
        assert result.micro_batches == len(windows) == 3
        assert result.loss == pytest.approx(expected.loss, rel=1e-12)
