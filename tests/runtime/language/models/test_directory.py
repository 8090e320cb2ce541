"""Files beside a model's weights: what changes the model is read, or refused by its name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from runtime.checkpoint import CheckpointError
from runtime.language.inspect import inspection
from runtime.language.models import (
    ModelError,
    lazy_causal_lm,
    lazy_encoder,
    load_causal_lm,
    locate_model,
)
from runtime.language.models.sources import open_source
from tests.runtime.language.models.test_encoder import directory as encoder_directory  # noqa: F401 (a fixture)
from tests.runtime.language.models.test_lazy import (
    assert_equal,
    change_weights,
    ids_of,
    logits_of_transformers,
    logits_over_stages,
)
from tests.runtime.language.models.test_locate import change_config
from tests.support.checkpoints import save
from tests.support.tiny_models import tiny_model

ADAPTER = {"peft_type": "LORA", "base_model_name_or_path": "some/base"}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    tiny_model("qwen2").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    tiny_model("qwen2").save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    return tmp_path / "shards"


def refusal(name: Path) -> str:
    """The sentence that evaluation and conversion refuse a directory with."""
    with pytest.raises(ModelError) as caught:
        lazy_causal_lm(locate_model(str(name)))
    message = str(caught.value)
    assert "\n" not in message
    with pytest.raises(ModelError):
        open_source(str(name))
    return message


def refusal_to_load(name: Path) -> str:
    with pytest.raises(ModelError) as caught:
        lazy_causal_lm(locate_model(str(name)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "file", ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"]
)
def test_an_adapter_beside_a_model_is_not_left_out_in_silence(directory: Path, file: str):
    (directory / file).write_text("{}")
    assert f"holds an adapter ({file}) beside the weights" in refusal(directory)


def test_an_adapter_alone_is_said_to_be_one_and_for_which_model(tmp_path: Path):
    (tmp_path / "adapter_config.json").write_text(json.dumps(ADAPTER))
    save_file({"x": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    assert refusal(tmp_path) == (
        f"{tmp_path} holds an adapter alone (adapter_config.json), no model: merge it into "
        "'some/base' (merge_and_unload of peft), save the result, and give the directory of that"
    )


def test_weights_of_an_adapter_under_the_name_of_the_model_are_said_to_be_one(directory: Path):
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    change_weights(directory, lambda weights: weights.update({name: torch.ones(2, 64)}))
    assert f"it holds an adapter, {name} for example" in refusal_to_load(directory)


@pytest.mark.parametrize(
    "file", ["quantize_config.json", "quant_config.json", "hf_quant_config.json"]
)
def test_notes_on_quantisation_are_not_passed_over(directory: Path, file: str):
    (directory / file).write_text("{}")
    assert f"({file}) holds quantised weights" in refusal(directory)


def test_a_configuration_that_says_quantised_is_refused_by_conversion_too(directory: Path):
    change_config(directory, quantization_config={"quant_method": "gptq"})
    assert "holds quantised weights" in refusal(directory)


def test_two_sets_of_weights_are_refused(directory: Path, shards: Path):
    index = "model.safetensors.index.json"
    for file in shards.glob("model*"):
        shutil.copy(file, directory)
    assert f"two sets of weights, model.safetensors and those that {index} names" in refusal(
        directory
    )


def test_an_index_that_means_the_one_file_is_no_second_set(directory: Path):
    names = load_file(directory / "model.safetensors").keys()
    index = {"weight_map": dict.fromkeys(names, "model.safetensors")}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    assert lazy_causal_lm(locate_model(str(directory))).layers


def test_a_checkpoint_by_layers_saved_into_a_model_is_a_second_set(directory: Path):
    save(directory)
    message = refusal(directory)
    assert "two sets of weights, model.safetensors and those by layers that manifest.json" in (
        message
    )


def test_a_manifest_of_another_program_is_not_mistaken_for_a_checkpoint(directory: Path):
    for content in ("[]", '{"name": "web app"}', "{"):
        (directory / "manifest.json").write_text(content)
        assert lazy_causal_lm(locate_model(str(directory))).layers


def test_weights_that_would_not_be_read_are_named(directory: Path):
    save_file({"x": torch.ones(1)}, directory / "value_head.safetensors")
    assert "holds value_head.safetensors beside its weights (model.safetensors)" in refusal(
        directory
    )


def test_copies_of_the_same_weights_in_other_formats_are_passed_over(directory: Path):
    expected = logits_of_transformers(directory, torch.float32)
    (directory / "pytorch_model.bin").write_bytes(b"another format")
    save_file({"x": torch.ones(1)}, directory / "consolidated.safetensors")
    save_file({"x": torch.ones(1)}, directory / "model.fp16.safetensors")
    assert_equal(logits_over_stages(lazy_causal_lm(locate_model(str(directory))), 2), expected)


@pytest.mark.parametrize("where", [0, -1])
def test_of_one_name_in_two_shards_the_index_decides(shards: Path, where: int):
    expected = logits_of_transformers(shards, torch.float32)
    index = json.loads((shards / "model.safetensors.index.json").read_text())["weight_map"]
    name = "model.norm.weight"
    other = shards / sorted(set(index.values()) - {index[name]})[where]
    save_file(load_file(other) | {name: torch.full((64,), 9.0)}, other, {"format": "pt"})
    files = locate_model(str(shards))
    assert_equal(logits_over_stages(lazy_causal_lm(files), 2), expected)
    whole = load_causal_lm(files)  # what a verification compares with
    with torch.no_grad():
        assert_equal([whole(input_ids=ids, use_cache=False).logits for ids in ids_of()], expected)


def test_of_one_name_in_two_shards_that_no_index_mentions_neither_is_taken(shards: Path):
    path = shards / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    name = "model.norm.weight"
    file = index["weight_map"].pop(name)
    path.write_text(json.dumps(index))
    assert lazy_causal_lm(locate_model(str(shards))).layers  # one alone is not in doubt
    other = shards / min(set(index["weight_map"].values()) - {file})
    save_file(load_file(other) | {name: torch.ones(64)}, other, {"format": "pt"})
    message = refusal_to_load(shards)
    assert f"tensor {name} is in {other} and in {shards / file}" in message
    assert "does not say which counts" in message


@pytest.mark.parametrize(
    ("prefix", "whose"),
    [
        ("_orig_mod.", "torch.compile"),
        ("module.", "DistributedDataParallel"),
        ("a.module.", "Dist"),
    ],
)
def test_names_that_a_wrapper_changed_are_shown_as_they_are_in_the_file(
    directory: Path, prefix: str, whose: str
):
    file = directory / "model.safetensors"
    weights = {f"{prefix}{name}": value for name, value in load_file(file).items()}
    save_file(weights, file, {"format": "pt"})
    message = refusal_to_load(directory)
    assert f"such as {prefix}lm_head.weight, which {whose}" in message
    assert "save the state_dict of the module that is wrapped" in message


def test_lacking_and_adding_are_both_told(directory: Path):
    def rename(weights: dict[str, torch.Tensor]) -> None:
        weights["transformer.norm"] = weights.pop("model.norm.weight")

    change_weights(directory, rename)
    assert refusal_to_load(directory).endswith(
        "lacks 1 tensor, lm.model.norm.weight of layer 4 among them (model.norm.weight in its "
        "files); it also adds 1 tensor, transformer.norm among them"
    )


def test_quantised_weights_are_known_by_their_names(directory: Path):
    name = "model.layers.0.self_attn.q_proj.qweight"
    change_weights(directory, lambda w: w.update({name: torch.ones(8, 64, dtype=torch.int32)}))
    assert f"{name} is of quantised weights" in refusal_to_load(directory)


@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
def test_an_unknown_type_of_rotary_embedding_is_named_with_those_that_are_known(
    directory: Path, key: str
):
    config = json.loads((directory / "config.json").read_text())
    del config["rope_parameters"]
    config[key] = {"rope_type": "spiral", "rope_theta": 1e4, "factor": 2.0}
    (directory / "config.json").write_text(json.dumps(config))
    assert refusal_to_load(directory).endswith(
        "sets the type of the rotary embedding (rope_type) to 'spiral'; the known types are "
        "default, dynamic, linear, llama3, longrope, proportional, yarn"
    )


def pooling(directory: Path, **modes: bool) -> None:
    (directory / "1_Pooling").mkdir(exist_ok=True)
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(modes))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda d: pooling(d, pooling_mode_cls_token=True), "sets pooling_mode_cls_token, and"),
        (
            lambda d: pooling(d, pooling_mode_mean_tokens=True, pooling_mode_max_tokens=True),
            "sets pooling_mode_mean_tokens, pooling_mode_max_tokens, and only the mean",
        ),
        (
            lambda d: (d / "modules.json").write_text(
                '[{"type": "Transformer", "path": ""}, {"type": "Pooling", "path": "1_Pooling"}]'
            ),
            "names the steps Transformer, Pooling, and only",
        ),
        (lambda d: (d / "modules.json").write_text("[1]"), "modules.json is damaged"),
    ],
)
def test_what_comes_after_an_encoder_is_read_and_another_pooling_refused(
    tmp_path: Path,
    encoder_directory: Path,  # noqa: F811
    change: Callable[[Path], object],
    problem: str,
):
    place = tmp_path / "encoder"
    shutil.copytree(encoder_directory, place)
    assert lazy_encoder(place).layers
    change(place)
    with pytest.raises(ModelError) as caught:
        lazy_encoder(place)
    assert problem in str(caught.value)


def test_inspection_names_tensors_that_belong_to_no_layer(directory: Path, capsys):
    from runtime.language.inspect import print_inspection

    assert inspection(str(directory)).unplaced == ()
    change_weights(directory, lambda w: w.update({"extra[bold]\x1b": torch.ones(1)}))
    found = inspection(str(directory))
    assert found.unplaced == ("extra[bold]\x1b",)
    print_inspection(found)
    assert "belong to no layer (1): extra[bold]\\x1b" in capsys.readouterr().out


def test_experts_of_deepspeed_are_not_dropped_in_silence(tmp_path: Path):
    torch.save({}, tmp_path / "layer_00-model_states.pt")
    torch.save({}, tmp_path / "layer_1_expert_0_mp_rank_00_model_states.pt")
    with pytest.raises(CheckpointError, match="mixtures of experts are not supported"):
        open_source(str(tmp_path))
