"""Every family of causal language models: split by its own forward, exactly, or refused."""

from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from runtime import Evaluator
from runtime.language.models import (
    LazyModel,
    ModelError,
    lazy_causal_lm,
    locate_model,
    split_causal_lm,
)
from runtime.testing import InMemoryTransport, run_threads
from tests.support.families import FAMILIES, REFUSED, VOCABULARY, WINDOW, family_model

LENGTH = 2 * WINDOW + 3


def inputs(seed: int = 0, length: int = LENGTH) -> dict[str, torch.Tensor]:
    """A row padded on the left, a whole one, and one padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (3, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    mask[2, -7:] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}


@torch.inference_mode()
def of_model(model: PreTrainedModel, given: dict[str, torch.Tensor]) -> torch.Tensor:
    logits: torch.Tensor = model(**given, use_cache=False).logits
    return logits


@torch.inference_mode()
def of_layers(layers: list[nn.Module], given: dict[str, torch.Tensor]) -> torch.Tensor:
    value: Any = layers[0](**given)
    for layer in layers[1:]:
        value = layer(value)
    return value


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_split_layers_give_the_bits_of_the_models_own_forward(family: str):
    torch.set_num_threads(1)
    model = family_model(family)
    layers = split_causal_lm(model)
    assert len(layers) == 6
    given = inputs()
    for keys in (
        ("input_ids",),
        ("input_ids", "attention_mask"),
        ("input_ids", "position_ids"),
        ("input_ids", "attention_mask", "position_ids"),
    ):
        chosen = {key: given[key] for key in keys}
        if {"input_ids", *layers[0].accepted}.issuperset(keys):
            assert torch.equal(of_layers(layers, chosen), of_model(model, chosen)), keys
        else:
            with pytest.raises(ModelError, match="takes no position_ids"):
                layers[0](**chosen)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("falcon", {"alibi": False}),
        ("falcon", {"alibi": False, "new_decoder_architecture": True, "num_kv_heads": 2}),
        ("gpt_neox", {"use_parallel_residual": False}),
        ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 32}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2}),
        ("stablelm", {"use_parallel_residual": True, "qk_layernorm": True}),
    ],
)
def test_variants_of_a_family_are_exact_too(family: str, changes: dict[str, Any]):
    torch.set_num_threads(1)
    model = family_model(family, **changes)
    given = inputs()
    for chosen in (given, {"input_ids": given["input_ids"]}):
        assert torch.equal(of_layers(split_causal_lm(model), chosen), of_model(model, chosen))


def logits_over_stages(model: LazyModel, stages: int, data: list[Any]) -> list[torch.Tensor]:
    specs = model.specs()

    def stage(end: InMemoryTransport) -> tuple[torch.Tensor, ...] | None:
        torch.set_num_threads(1)
        evaluator = Evaluator(specs, partition="uniform", transport=end, keyword_inputs=True)
        batches = [(given, given["input_ids"]) for given in data] if evaluator.is_first else None
        return evaluator.evaluate(batches, compute_loss=False, return_logits=True).logits

    logits = run_threads(stages, stage, timeout=60)[-1]
    assert logits is not None
    return list(logits)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_stages_load_their_own_layers_and_give_the_bits_of_the_saved_model(
    tmp_path: Path, family: str
):
    torch.set_num_threads(1)
    model = family_model(family)
    model.save_pretrained(tmp_path)
    data = [inputs(seed, length) for seed, length in ((1, LENGTH), (2, 8), (3, LENGTH))]
    for given in data:
        del given["position_ids"]
    expected = [of_model(model, given) for given in data]
    lazy = lazy_causal_lm(locate_model(str(tmp_path)))
    for stages in (1, 2, 3):
        found = logits_over_stages(lazy, stages, data)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), stages


def test_micro_batches_with_and_without_masks_and_positions_follow_each_other(tmp_path: Path):
    torch.set_num_threads(1)
    model = family_model("mistral")
    model.save_pretrained(tmp_path)
    whole = inputs()
    data = [
        whole,
        {"input_ids": whole["input_ids"]},
        {"input_ids": whole["input_ids"], "attention_mask": whole["attention_mask"]},
        whole | {"attention_mask": torch.ones_like(whole["attention_mask"])},
    ]
    found = logits_over_stages(lazy_causal_lm(locate_model(str(tmp_path))), 2, data)
    expected = [of_model(model, given) for given in data]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("family", sorted(REFUSED))
def test_a_family_that_cannot_be_split_is_refused_with_the_reason(family: str):
    with pytest.raises(ModelError, match=REFUSED[family][1]) as caught:
        split_causal_lm(family_model(family))
    assert "\n" not in str(caught.value)


def change_forward(model: PreTrainedModel, forward: Any) -> PreTrainedModel:
    model.model.forward = MethodType(forward, model.model)
    return model


def skips_a_layer(self: Any, inputs_embeds: Any = None, input_ids: Any = None, **_: Any) -> Any:
    hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
    rotations = self.rotary_emb(hidden, torch.arange(hidden.shape[1])[None])
    states = [hidden]
    for layer in self.layers[: self.config.num_hidden_layers]:
        states.append(layer(states[-1], position_embeddings=rotations))
    return self.finish(states)


def finish_with(model: PreTrainedModel, finish: Any) -> PreTrainedModel:
    from transformers.modeling_outputs import BaseModelOutputWithPast

    model.model.finish = lambda states: BaseModelOutputWithPast(
        last_hidden_state=model.model.norm(finish(states))
    )
    return change_forward(model, skips_a_layer)


def test_a_forward_that_uses_more_than_the_last_hidden_state_is_refused():
    split_causal_lm(finish_with(family_model("llama"), lambda states: states[-1]))
    for finish, reason in (
        (lambda states: states[-1] + states[1], "its logits are computed from .*layer 0.*layer 3"),
        (lambda states: states[-1] + states[0], "its logits are computed from .*tokens"),
        (
            lambda states: states[-1] if states[-1].sum() > 0 else -states[-1],
            "depends on .*layer 3",
        ),
    ):
        with pytest.raises(ModelError, match=reason):
            split_causal_lm(finish_with(family_model("llama"), finish))


def test_scaled_rotary_embeddings_reach_beyond_the_positions_that_are_stated(tmp_path: Path):
    rope = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
    model = family_model("llama", rope_parameters=rope)
    model.save_pretrained(tmp_path)
    given = {"input_ids": inputs(length=200)["input_ids"]}
    lazy = lazy_causal_lm(locate_model(str(tmp_path)))
    (found,) = logits_over_stages(lazy, 2, [given])
    assert torch.equal(found, of_model(model, given))


def test_blocks_of_a_stage_make_their_masks_once_for_each_micro_batch(tmp_path: Path):
    family_model("mistral").save_pretrained(tmp_path)
    lazy = lazy_causal_lm(locate_model(str(tmp_path)))
    stage = [lazy.load(index) for index in range(6)]
    other = [lazy.load(index) for index in (3, 4)]
    assert stage[1].surroundings is stage[4].surroundings
    assert other[0].surroundings is not stage[1].surroundings
    made = []
    stage[1].surroundings.lm.register_forward_pre_hook(lambda *_: made.append(1))
    given = inputs()
    first = of_layers(stage, given)
    given["attention_mask"].copy_(torch.ones_like(given["attention_mask"]))  # a loader's buffer
    second = of_layers(stage, given)
    assert len(made) == 2
    assert not torch.equal(first, second)


def test_rotary_embeddings_that_remember_lengths_are_each_layers_own(tmp_path: Path):
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    model = family_model("llama", rope_parameters=rope)
    model.save_pretrained(tmp_path)
    lazy = lazy_causal_lm(locate_model(str(tmp_path)))
    assert lazy.load(1).surroundings is not lazy.load(2).surroundings
    data = [{"input_ids": inputs(length=length)["input_ids"]} for length in (30, 90, 70, 80, 20)]
    expected = [of_model(model, given) for given in data]
    found = logits_over_stages(lazy, 3, data)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
