"""What does not fit or is damaged is refused on all ranks, before anything has changed on any."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from runtime import Evaluator
from runtime.checkpoint import CheckpointError
from tests.support.checkpoints import assert_same, load, model, on_grid, save, state_of

STAGES = 3


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    save(tmp_path)
    return tmp_path


def file_of(directory: Path, layer: int) -> Path:
    return next(directory.glob(f"save-*/layer_{layer:02d}.safetensors"))


def change_manifest(directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = directory / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def refusal(directory: Path, layers: Callable[[], list[nn.Module]] = model, **how: Any) -> str:
    """The one sentence that all ranks get, none of which has changed anything."""

    def call(evaluator: Evaluator) -> str:
        before = state_of(list(evaluator.module))
        with pytest.raises(CheckpointError) as caught:
            evaluator.load_state_dir(directory, **how)
        assert_same(state_of(list(evaluator.module)), before)
        return str(caught.value)

    messages = set(on_grid(layers, call, stages=STAGES, replicas=2))
    assert len(messages) == 1
    message = messages.pop()
    assert "\n" not in message
    return message


def replaced(index: int, layer: Callable[[], nn.Module]) -> Callable[[], list[nn.Module]]:
    def layers() -> list[nn.Module]:
        changed = model(seed=1)
        changed[index] = layer()
        return changed

    return layers


def test_a_wrong_shape_names_layer_file_and_tensor(directory: Path):
    message = refusal(directory, replaced(4, lambda: nn.Linear(6, 7, dtype=torch.float16)))
    assert re.fullmatch(
        r"layer 4, .*/layer_04\.safetensors: tensor (weight is float16 \[6, 6\], and the model "
        r"needs float16 \[7, 6\]|bias is float16 \[6\], and the model needs float16 \[7\])",
        message,
    )


def test_a_wrong_dtype_names_both(directory: Path):
    message = refusal(directory, replaced(4, lambda: nn.Linear(6, 6)))
    assert re.search(r"layer_04.*: tensor \w+ is float16 .*, and the model needs float32", message)


def test_missing_and_unexpected_tensors_are_named(directory: Path):
    message = refusal(directory, replaced(2, lambda: nn.Linear(3, 3)))
    assert re.match(
        r"layer 2 in .*: tensor bias is missing \(1 more\), .* Linear needs it", message
    )
    message = refusal(directory, replaced(1, nn.Tanh))
    assert re.match(
        r"layer 1, .*/layer_01\.safetensors: tensor bias is unexpected \(1 more\)", message
    )


class Compiled(nn.Module):
    """A layer whose tensors have the names that `torch.compile` gives them."""

    def __init__(self) -> None:
        super().__init__()
        self._orig_mod = nn.Linear(6, 6)


def test_names_that_a_wrapper_changed_are_shown_with_those_that_are_needed(tmp_path: Path):
    save(tmp_path, replaced(1, Compiled))
    assert re.search(
        r"tensor bias is missing .* Linear needs it; there is _orig_mod\.bias instead \(1 more\)",
        refusal(tmp_path),
    )


def test_without_strict_they_are_reported_and_the_rest_is_loaded(directory: Path):
    layers = replaced(1, lambda: nn.Linear(6, 6, bias=False))

    def call(evaluator: Evaluator) -> Any:
        return evaluator.load_state_dir(directory, strict=False)

    for mismatch in on_grid(layers, call, stages=STAGES, replicas=2):
        assert mismatch.missing == ()
        assert mismatch.unexpected == ("layer 1: bias",)
    expected = state_of(model())
    del expected["1.bias"]
    assert_same(load(directory, layers, strict=False, stages=2), expected)
    changed = replaced(1, lambda: nn.Linear(6, 6).to(torch.float64))
    assert "layer 1" in refusal(directory, changed, strict=False)


def test_another_number_of_layers_is_refused(directory: Path):
    layers = lambda: [*model(), nn.Identity()]  # noqa: E731
    assert refusal(directory, layers) == f"{directory} holds 7 layers, and the model has 8"


@pytest.mark.parametrize("layer", [0, 3, 6])
def test_a_truncated_file_is_named(directory: Path, layer: int):
    path = file_of(directory, layer)
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    assert refusal(directory) == (
        f"layer {layer}, {path}: the file has {size - 1} bytes, needed {size}"
    )


def test_a_missing_file_is_named(directory: Path):
    path = file_of(directory, 4)
    path.unlink()
    assert refusal(directory) == f"layer 4, {path}: the file is missing"


@settings(max_examples=40)
@given(data=st.data())
def test_a_flipped_bit_anywhere_in_a_file_is_found(tmp_path_factory, data):
    directory = tmp_path_factory.mktemp("flipped")
    save(directory)
    layer = data.draw(st.sampled_from([0, 1, 3, 4, 6]))
    path = file_of(directory, layer)
    content = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    try:
        message = refusal(directory)
    except pytest.fail.Exception:  # it was not refused
        assert place < header  # where the file says what nobody needs: its metadata
        assert_same(load(directory), state_of(model()))
        return
    assert message.startswith(f"layer {layer}")
    assert f"layer_{layer:02d}.safetensors" in message
    if place >= header:
        assert re.search(r": tensor [\w.]+ is damaged: it does not have the checksum", message)


def test_a_file_with_other_tensors_than_the_manifest_says_is_refused(directory: Path):
    path = file_of(directory, 1)
    tensors = load_file(path)
    tensors["w2ight"] = tensors.pop("weight")
    save_file(tensors, path, {"format": "pt"})
    message = refusal(directory)
    assert f"layer 1, {path}: tensor w2ight is float32 [6, 6], needed none of that name" == message


def test_a_damaged_manifest_is_refused(directory: Path):
    path = directory / "manifest.json"
    content = path.read_text()
    path.write_text(content[: len(content) // 2])
    assert refusal(directory).startswith(f"{path} is damaged: Invalid JSON")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda m: m.update(format="schedcc.checkpoint/2"), "format: Input should be"),
        (lambda m: m.update(directory="../elsewhere"), "directory: String should match"),
        (lambda m: m["layers"].pop(2), "layer 2 has the index 3"),
        (lambda m: m["layers"][6]["tensors"][0].update(stored_in=2), "does not store it"),
        (lambda m: m["layers"][1].update(file="/etc/passwd"), "layers.1.file: String should match"),
        (lambda m: m["layers"][1]["tensors"][0].update(dtype="float31"), "'float31' is none of"),
    ],
)
def test_a_manifest_that_contradicts_itself_or_is_of_another_version_is_refused(
    directory: Path, change: Callable[[dict[str, Any]], None], problem: str
):
    change_manifest(directory, change)
    assert problem in refusal(directory)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path):
    assert "is no directory" in refusal(tmp_path / "nowhere")
    assert "holds no checkpoint" in refusal(tmp_path)


def test_ranks_that_read_different_checkpoints_notice(tmp_path: Path):
    save(tmp_path / "a")
    save(tmp_path / "b")

    def call(evaluator: Evaluator) -> str:
        with pytest.raises(CheckpointError) as caught:
            evaluator.load_state_dir(tmp_path / ("a" if evaluator.is_first else "b"))
        return str(caught.value)

    for message in on_grid(model, call, stages=2):
        assert "is another checkpoint for rank 1, replica 0 than for rank 0" in message


def test_layers_without_memory_are_refused(directory: Path):
    layers = replaced(1, lambda: nn.Linear(6, 6))

    def call(evaluator: Evaluator) -> None:
        evaluator.module.to("meta")
        evaluator.load_state_dir(directory)

    with pytest.raises(CheckpointError, match="layer 0 is on the meta device"):
        on_grid(layers, call)
