"""Native checkpoints: what is saved on one grid of stages and replicas loads on any other."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from threading import get_ident

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from runtime import Evaluator, TiedLayerSpec
from runtime.checkpoint import CheckpointError, NativeCheckpoint
from runtime.checkpoint.share import shares
from runtime.checkpoint.write import write_tensors
from runtime.modules.layers import Layer
from schemas import CheckpointManifest
from tests.support.checkpoints import LAYERS, assert_same, load, model, on_grid, save, state_of

grids = st.tuples(st.integers(1, LAYERS), st.integers(1, 3))


@settings(max_examples=20)
@given(saved=grids, loaded=grids, parallel_write=st.booleans())
def test_a_model_saved_on_one_grid_loads_bit_for_bit_on_another(
    tmp_path_factory, saved, loaded, parallel_write
):
    directory = tmp_path_factory.mktemp("checkpoint") / "new" / "place"
    save(directory, stages=saved[0], replicas=saved[1], parallel_write=parallel_write)
    state = load(directory, stages=loaded[0], replicas=loaded[1])
    assert_same(state, state_of(model()))


def test_every_layer_with_tensors_has_a_file_that_safetensors_reads(tmp_path: Path):
    manifest = save(tmp_path, stages=2)
    files = tmp_path / manifest.directory
    names = ["layer_00", "layer_01", "layer_03", "layer_04", "layer_06"]
    assert sorted(f.name for f in files.iterdir()) == [f"{name}.safetensors" for name in names]
    counted = load_file(files / "layer_03.safetensors")
    assert_same(counted, model()[3].state_dict())
    assert "cache" not in counted
    assert [layer.module for layer in manifest.layers][2:4] == ["Tanh", "Counted"]


def test_tied_matrices_are_stored_once_also_when_they_are_on_different_stages(tmp_path: Path):
    manifest = save(tmp_path, stages=3)
    assert list(load_file(tmp_path / manifest.directory / "layer_06.safetensors")) == ["bias"]
    weight = next(t for t in manifest.layers[6].tensors if t.name == "weight")
    assert (weight.stored_in, weight.stored_as) == (0, "weight")


def test_layers_that_are_tied_by_a_key_are_stored_once_and_load_on_any_number_of_stages(tmp_path):
    def logits(embedding: nn.Embedding, hidden: torch.Tensor) -> torch.Tensor:
        return hidden @ embedding.weight.t()

    def layers(seed: int = 0) -> list[Layer]:
        torch.manual_seed(seed)
        embedding = nn.Embedding(10, 6)
        return [
            TiedLayerSpec("embedding", lambda: copy.deepcopy(embedding)),
            nn.Linear(6, 6),
            TiedLayerSpec("embedding", lambda: copy.deepcopy(embedding), forward_fn=logits),
        ]

    manifest = save(tmp_path, layers, stages=3)
    assert [layer.file for layer in manifest.layers][2] is None
    expected = load(tmp_path, layers)
    for stages in (2, 3):
        assert_same(load(tmp_path, lambda: layers(seed=1), stages=stages), expected)


def test_weights_that_share_memory_or_have_strides_are_saved(tmp_path: Path):
    def layers() -> list[nn.Module]:
        torch.manual_seed(0)
        packed = torch.randn(4, 8)
        layer = nn.ParameterDict(
            {"left": packed[:, :4], "right": packed[:, 4:].t(), "bias": packed[0]}
        )
        return [layer]

    save(tmp_path, layers)
    assert_same(load(tmp_path, layers), state_of(layers()))


def test_a_second_save_replaces_the_first_and_leaves_nothing_of_it(tmp_path: Path):
    save(tmp_path)
    manifest = save(tmp_path, lambda: model(seed=3), stages=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", manifest.directory]
    assert_same(load(tmp_path), state_of(model(seed=3)))


def test_the_manifest_is_json_with_a_version_and_the_checksum_of_every_tensor(tmp_path: Path):
    manifest = save(tmp_path)
    read = json.loads((tmp_path / "manifest.json").read_text())
    assert read["format"] == "schedcc.checkpoint/1"
    assert CheckpointManifest.model_validate(read) == manifest
    linear = read["layers"][1]["tensors"]
    assert [(t["name"], t["dtype"], t["shape"], t["bytes"]) for t in linear] == [
        ("weight", "float32", [6, 6], 144),
        ("bias", "float32", [6], 24),
    ]


@pytest.fixture
def bytes_of_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs a save and returns the bytes that each rank has written, a thread each."""
    counts: dict[int, int] = {}

    def counted(path: Path, tensors: Mapping[str, torch.Tensor]) -> int:
        size = write_tensors(path, tensors)
        counts[get_ident()] = counts.get(get_ident(), 0) + size
        return size

    monkeypatch.setattr("runtime.checkpoint.save.write_tensors", counted)

    def run(replicas: int, *, parallel_write: bool = True) -> list[int]:
        def call(evaluator: Evaluator) -> int:
            counts.pop(get_ident(), None)
            evaluator.save_state_dict(tmp_path, parallel_write=parallel_write)
            return counts.get(get_ident(), 0)

        equal_layers = lambda: [nn.Linear(64, 64) for _ in range(12)]  # noqa: E731
        return on_grid(equal_layers, call, stages=2, replicas=replicas)

    return run


def test_two_replicas_write_half_of_the_bytes_of_one_each(bytes_of_ranks):
    alone, shared = bytes_of_ranks(1), bytes_of_ranks(2)
    assert sum(shared) == sum(alone)
    assert max(shared) == max(alone) / 2


def test_without_parallel_write_the_first_replica_writes_everything(bytes_of_ranks):
    assert bytes_of_ranks(2, parallel_write=False) == [*bytes_of_ranks(1), 0, 0]


@given(
    sizes=st.dictionaries(st.integers(0, 40), st.integers(0, 1000), max_size=20),
    replicas=st.integers(1, 5),
)
def test_shares_hold_every_layer_once_and_are_near_the_best_division(sizes, replicas):
    division = shares(sizes, replicas)
    assert sorted(i for share in division.values() for i in share) == sorted(sizes)
    loads = [sum(sizes[i] for i in share) for share in division.values()]
    best = max([sum(sizes.values()) / replicas, *sizes.values()])
    assert max(loads) <= 4 / 3 * best + max(sizes.values(), default=0)


def test_state_that_is_no_tensor_is_refused_on_all_ranks(tmp_path: Path):
    class Strange(nn.Module):
        def get_extra_state(self) -> dict[str, int]:
            return {"step": 1}

    with pytest.raises(CheckpointError, match=r"layer 1 has the state _extra_state of type dict"):
        save(tmp_path, lambda: [nn.Linear(2, 2), Strange()], stages=2)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_tells_its_layers_without_a_model(tmp_path: Path):
    save(tmp_path)
    source = NativeCheckpoint(tmp_path)
    assert source.layers == LAYERS
    stored = source.tensors(3)["norm.weight"]
    assert str(stored.spec) == "bfloat16 [6]"
    assert torch.equal(stored.read(), torch.ones(6, dtype=torch.bfloat16))
