"""Models that no process ever holds whole: a stage reads its own layers and gives the same bits."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from runtime import Evaluator
from runtime.checkpoint import StoredTensor
from runtime.language.models import LazyModel, ModelError, lazy_causal_lm, locate_model
from runtime.testing import InMemoryTransport, run_threads
from tests.support.tiny_models import CONFIGS, VOCABULARY, tiny_model, write_gguf

FAMILIES = sorted(CONFIGS)


def ids_of(sizes: tuple[tuple[int, int], ...] = ((2, 9), (1, 5))) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(VOCABULARY, size, generator=generator) for size in sizes]


def logits_over_stages(model: LazyModel, stages: int) -> list[torch.Tensor]:
    specs = model.specs()

    def stage(end: InMemoryTransport) -> tuple[torch.Tensor, ...] | None:
        torch.set_num_threads(1)
        evaluator = Evaluator(specs, partition="uniform", transport=end)
        data = [(ids, ids) for ids in ids_of()] if evaluator.is_first else None
        return evaluator.evaluate(data, compute_loss=False, return_logits=True).logits

    logits = run_threads(stages, stage, timeout=60)[-1]
    assert logits is not None
    return list(logits)


@torch.no_grad()
def logits_of_transformers(directory: Path, dtype: torch.dtype) -> list[torch.Tensor]:
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()
    return [model(input_ids=ids, use_cache=False).logits for ids in ids_of()]


def assert_equal(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert [tensor.dtype for tensor in found] == [tensor.dtype for tensor in expected]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_stages_that_read_their_own_tensors_give_the_logits_of_transformers(
    tmp_path: Path, family: str, dtype: torch.dtype
):
    tiny_model(family).save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    expected = logits_of_transformers(tmp_path, dtype)
    for stages in (1, 2, 3, 5):
        model = lazy_causal_lm(locate_model(str(tmp_path)), dtype)
        assert_equal(logits_over_stages(model, stages), expected)


@pytest.mark.parametrize("rope_type", ["llama3", "dynamic", "yarn", "linear"])
def test_buffers_are_computed_and_not_loaded(tmp_path: Path, rope_type: str):
    rope = {
        "rope_type": rope_type,
        "rope_theta": 1e4,
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }
    tiny_model("llama", rope_parameters=rope).save_pretrained(tmp_path)
    expected = logits_of_transformers(tmp_path, torch.float32)
    assert_equal(logits_over_stages(lazy_causal_lm(locate_model(str(tmp_path))), 3), expected)


def saved(directory: Path, family: str = "llama", **changes: object) -> Callable[[], LazyModel]:
    tiny_model(family, **changes).save_pretrained(directory)
    return lambda: lazy_causal_lm(locate_model(str(directory)))


def test_a_layer_reads_its_own_tensors_once_and_no_others(tmp_path, monkeypatch):
    model = saved(tmp_path)()
    read: list[str] = []
    original = StoredTensor.read

    def noted(self: StoredTensor) -> torch.Tensor:
        read.append(self.stored_as)
        return original(self)

    monkeypatch.setattr(StoredTensor, "read", noted)
    layer = model.load(2)
    expected = [name for name, _ in tiny_model("llama").named_parameters() if ".layers.1." in name]
    assert sorted(read) == sorted(expected)
    assert all(not tensor.is_meta for tensor in [*layer.parameters(), *layer.buffers()])
    assert all(p.is_meta for layer in model.layers for p in layer.parameters())


def test_tied_weights_are_read_once_and_are_one_parameter_where_a_process_has_both(tmp_path):
    model = saved(tmp_path)()
    first, last = model.load(0), model.load(4)
    assert first.lm.model.embed_tokens.weight is last.lm.lm_head.weight
    again = saved(tmp_path)()
    assert again.load(4).lm.lm_head.weight is not first.lm.model.embed_tokens.weight


def test_weights_of_the_base_model_alone_and_old_names_are_understood(tmp_path: Path):
    for family, old in (("gpt2", "transformer."), ("gpt_neox", None)):
        directory = tmp_path / family
        load = saved(directory, family)
        expected = logits_of_transformers(directory, torch.float32)
        file = directory / "model.safetensors"
        weights = load_file(file)
        if old is not None:
            weights = {name.removeprefix(old): value for name, value in weights.items()}
            weights["h.0.attn.bias"] = torch.ones(1, 1, 4, 4)
        else:
            assert "embed_out.weight" in weights
            weights["gpt_neox.layers.0.attention.rotary_emb.inv_freq"] = torch.ones(4)
        save_file(weights, file, {"format": "pt"})
        assert_equal(logits_over_stages(load(), 2), expected)


def test_weights_in_files_of_torch_are_read_tensor_by_tensor_too(tmp_path: Path):
    load = saved(tmp_path)
    expected = logits_of_transformers(tmp_path, torch.float32)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    file.unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    assert_equal(logits_over_stages(load(), 2), expected)


def test_a_gguf_file_is_read_by_stages_from_its_conversion(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("SCHEDCC_CACHE", str(tmp_path / "cache"))
    written = tiny_model("llama")
    path = write_gguf(tmp_path / "m.gguf", written)
    model = lazy_causal_lm(locate_model(str(path)))
    with torch.no_grad():
        expected = [written(input_ids=ids, use_cache=False).logits for ids in ids_of()]
    assert_equal(logits_over_stages(model, 3), expected)


def change_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    file = directory / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, {"format": "pt"})


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            lambda weights: weights.pop("model.norm.weight"),
            r"lacks 1 tensor, lm\.model\.norm\.weight of layer 4 among them",
        ),
        (
            lambda weights: weights.update(
                {"model.layers.0.self_attn.q_proj.bias": torch.ones(64)}
            ),
            r"adds 1 tensor, model\.layers\.0\.self_attn\.q_proj\.bias among them",
        ),
        (
            lambda weights: weights.update({"model.layers.3.mlp.up_proj.weight": torch.ones(2)}),
            r"adds 1 tensor, model\.layers\.3\.mlp\.up_proj\.weight among them",
        ),
        (
            lambda weights: weights.update({"model.norm.weight": torch.ones(65)}),
            r"model\.norm\.weight is \[65\], and \[64\] is needed",
        ),
        (
            lambda weights: weights.update({"model.norm.weight": torch.ones(64, dtype=torch.int8)}),
            r"model\.norm\.weight is int8, and float32 is needed; quantised weights are not",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused_before_any_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable, problem: str
):
    load = saved(tmp_path)
    change_weights(tmp_path, change)
    monkeypatch.setattr(StoredTensor, "read", None)
    with pytest.raises(ModelError, match=problem):
        load()


def test_an_untied_head_that_is_missing_is_not_taken_from_the_embedding(tmp_path: Path):
    load = saved(tmp_path, "qwen2")
    change_weights(tmp_path, lambda weights: weights.pop("lm_head.weight"))
    with pytest.raises(ModelError, match=r"lacks 1 tensor, lm\.lm_head\.weight of layer 4"):
        load()


def test_damaged_files_are_refused(tmp_path: Path):
    load = saved(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"model\.safetensors is damaged or cut off"):
        load()
    file.unlink()
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": "gone.safetensors"}}))
    with pytest.raises(ModelError, match=r"gone\.safetensors is missing"):
        load()
    index.write_text("[]")
    with pytest.raises(ModelError, match=r"index\.json is damaged"):
        load()
