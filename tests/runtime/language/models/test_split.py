import gc
import weakref
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from runtime.language.models import (
    BlockLayer,
    EmbeddingLayer,
    HeadLayer,
    ModelError,
    layer_costs,
    load_causal_lm,
    locate_model,
    split_causal_lm,
)
from tests.support.tiny_models import CONFIGS, POSITIONS, VOCABULARY, smollm2, tiny_model

FAMILIES = sorted(CONFIGS)


@pytest.fixture(scope="module")
def tiny_models() -> dict[str, PreTrainedModel]:
    return {family: tiny_model(family) for family in FAMILIES}


def random_ids(micro_batch: int, sequence: int, vocabulary: int = VOCABULARY) -> torch.Tensor:
    generator = torch.Generator().manual_seed(micro_batch * 1000 + sequence)
    return torch.randint(vocabulary, (micro_batch, sequence), generator=generator)


@torch.inference_mode()
def logits_of_layers(layers: list[nn.Module], ids: torch.Tensor) -> torch.Tensor:
    tensor = ids
    for layer in layers:
        tensor = layer(tensor)
    return tensor


@torch.inference_mode()
def logits_of_model(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize("family", FAMILIES)
@settings(deadline=None, max_examples=15)
@given(micro_batch=st.integers(1, 3), sequence=st.integers(1, POSITIONS))
def test_split_layers_give_bit_identical_logits(
    tiny_models: dict[str, PreTrainedModel], family: str, micro_batch: int, sequence: int
):
    model = tiny_models[family]
    ids = random_ids(micro_batch, sequence)
    assert torch.equal(logits_of_layers(split_causal_lm(model), ids), logits_of_model(model, ids))


def test_split_layers_of_smollm2_give_bit_identical_logits():
    ids = random_ids(2, 33, vocabulary=49152)
    layers = split_causal_lm(smollm2())
    assert len(layers) == 32
    assert torch.equal(logits_of_layers(layers, ids), logits_of_model(smollm2(), ids))


@pytest.mark.parametrize("rope_type", ["llama3", "dynamic", "yarn"])
def test_scaled_rotary_embeddings_are_those_of_the_model(rope_type: str):
    rope = {
        "rope_type": rope_type,
        "rope_theta": 1e4,
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }
    model = tiny_model("llama", rope_parameters=rope)
    ids = random_ids(2, 40)
    assert torch.equal(logits_of_layers(split_causal_lm(model), ids), logits_of_model(model, ids))


def test_attention_that_slides_is_exact_beyond_its_window():
    model = tiny_model("mistral", sliding_window=16)
    layers = split_causal_lm(model)
    for length in (16, 17, 50):
        ids = random_ids(2, length)
        assert torch.equal(logits_of_layers(layers, ids), logits_of_model(model, ids))
    everything = tiny_model("mistral", sliding_window=None)
    assert not torch.equal(logits_of_layers(layers, ids), logits_of_model(everything, ids))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_logits_of_a_token_do_not_depend_on_later_tokens(
    tiny_models: dict[str, PreTrainedModel], family: str
):
    layers = split_causal_lm(tiny_models[family])
    ids, changed = random_ids(1, 12), random_ids(1, 12)
    changed[0, 8:] = (changed[0, 8:] + 1) % VOCABULARY
    before, after = logits_of_layers(layers, ids), logits_of_layers(layers, changed)
    torch.testing.assert_close(before[:, :8], after[:, :8])
    assert not torch.allclose(before[:, 8:], after[:, 8:])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_layers_map_one_tensor_to_one_tensor(tiny_models: dict[str, PreTrainedModel], family: str):
    layers = split_causal_lm(tiny_models[family])
    kinds = [EmbeddingLayer, BlockLayer, BlockLayer, BlockLayer, HeadLayer]
    assert [type(layer) for layer in layers] == kinds
    tensor = random_ids(2, 7)
    for layer, width in zip(layers, [64, 64, 64, 64, VOCABULARY], strict=True):
        tensor = layer(tensor)
        assert tensor.shape == (2, 7, width)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_dropped_layers_give_their_memory_back(family: str):
    model = tiny_model(family)
    layers = split_causal_lm(model)
    kept = layers[2]
    kept_parameters = {id(parameter) for parameter in kept.parameters()}
    others = [
        weakref.ref(parameter)
        for parameter in model.parameters()
        if id(parameter) not in kept_parameters
    ]
    assert others
    del model, layers
    gc.collect()
    assert [reference() for reference in others if reference() is not None] == []
    assert kept(torch.zeros(1, 3, 64)).shape == (1, 3, 64)


def test_a_tied_head_holds_the_weight_of_the_embedding():
    first, *_, last = split_causal_lm(tiny_model("llama"))
    assert next(iter(first.parameters())) is list(last.parameters())[-1]


def test_a_sequence_without_positions_for_it_is_refused():
    for family in ("llama", "gpt2"):
        first = split_causal_lm(tiny_model(family))[0]
        with pytest.raises(ModelError, match=r"65 is too long .* at most 64 tokens"):
            first(random_ids(1, POSITIONS + 1))


def test_any_attention_is_exact_and_sees_no_later_token():
    model = tiny_model("llama")
    model.set_attn_implementation("eager")
    layers = split_causal_lm(model)
    ids, changed = random_ids(1, 12), random_ids(1, 12)
    changed[0, 8:] = (changed[0, 8:] + 1) % VOCABULARY
    before, after = logits_of_layers(layers, ids), logits_of_layers(layers, changed)
    assert torch.equal(before, logits_of_model(model, ids))
    torch.testing.assert_close(before[:, :8], after[:, :8])


def load(path: Path) -> PreTrainedModel:
    return load_causal_lm(locate_model(str(path)))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_directory_loads_exactly_and_silently(
    tmp_path: Path, family: str, capfd: pytest.CaptureFixture[str]
):
    saved = tiny_model(family)
    saved.save_pretrained(tmp_path)
    capfd.readouterr()
    loaded = load(tmp_path)
    assert capfd.readouterr() == ("", "")
    assert not loaded.training
    ids = random_ids(2, 9)
    assert torch.equal(logits_of_layers(split_causal_lm(loaded), ids), logits_of_model(saved, ids))


def test_a_model_loads_in_another_precision(tmp_path: Path):
    tiny_model("llama").save_pretrained(tmp_path)
    model = load_causal_lm(locate_model(str(tmp_path)), dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_a_checkpoint_that_lacks_a_weight_is_refused(tmp_path: Path):
    tiny_model("llama").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 tensor, model\.norm\.weight among them"):
        load(tmp_path)


def test_a_checkpoint_with_a_weight_of_another_model_is_refused(tmp_path: Path):
    tiny_model("llama").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.layers.0.self_attn.q_proj.bias"] = torch.ones(64)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"adds 1 tensor, .*q_proj\.bias among them"):
        load(tmp_path)


def test_a_checkpoint_of_another_shape_is_refused(tmp_path: Path):
    tiny_model("llama").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(65)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"model\.norm\.weight is \[65\], and \[64\] is needed"):
        load(tmp_path)


def test_buffers_that_old_checkpoints_carry_are_accepted(tmp_path: Path):
    for family, name, value in (
        ("llama", "model.layers.0.self_attn.rotary_emb.inv_freq", torch.ones(8)),
        ("gpt2", "transformer.h.0.attn.bias", torch.ones(1, 1, POSITIONS, POSITIONS)),
    ):
        tiny_model(family).save_pretrained(tmp_path / family)
        file = tmp_path / family / "model.safetensors"
        save_file(load_file(file) | {name: value}, file, {"format": "pt"})
        load(tmp_path / family)


def test_damaged_weights_are_refused(tmp_path: Path):
    tiny_model("llama").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ModelError, match=r"weights of .* cannot be loaded"):
        load(tmp_path)


def test_costs_are_counted_as_by_hand():
    attention = 64 * (10 + 1)
    llama_block = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 96 + attention
    gpt2_block = 64 * 192 + 64 * 64 + 2 * 64 * 256 + attention
    for family, block in (("llama", llama_block), ("gpt2", gpt2_block)):
        costs = layer_costs(split_causal_lm(tiny_model(family)), sequence_length=10)
        assert costs == [0.0, block, block, block, 64.0 * VOCABULARY]


def test_costs_use_the_width_of_all_heads_where_it_is_not_the_hidden_size():
    layers = split_causal_lm(tiny_model("qwen3"))
    short, long = layer_costs(layers, 10), layer_costs(layers, 11)
    assert [b - a for a, b in zip(short, long, strict=True)] == [0, 128, 128, 128, 0]
