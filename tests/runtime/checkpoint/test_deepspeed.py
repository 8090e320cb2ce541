"""DeepSpeed's layout, read without DeepSpeed: two checkpoints that it wrote, and broken ones."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from runtime import Evaluator
from runtime.checkpoint import CheckpointError
from tests.support.checkpoints import on_grid, state_of
from tests.support.paths import DATA

DEEPSPEED = DATA / "deepspeed"
TAG = "tag0"
LOSSES = {"float32": 1.1025993377, "bfloat16": 1.1044921875}
"""As DeepSpeed computed them, on two stages."""


class Twice(nn.Module):
    """Stands for the plain function of the original, which has no file."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.n = nn.LayerNorm(8)
        self.steps = nn.Buffer(torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.n(x)


def layers(dtype: str = "float32") -> list[nn.Module]:
    linear = lambda: nn.Linear(8, 8)  # noqa: E731
    parts = [linear(), nn.ReLU(), linear(), Twice(), linear(), Normed(), linear(), nn.Linear(8, 4)]
    return [part.to(getattr(torch, dtype)) for part in parts]


def micro_batches(dtype: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(5)
    kind = getattr(torch, dtype)
    return [
        (
            torch.randn(2, 8, generator=generator).to(kind),
            torch.randn(2, 4, generator=generator).to(kind),
        )
        for _ in range(4)
    ]


@pytest.mark.parametrize("dtype", LOSSES)
@pytest.mark.parametrize("stages", [1, 2, 5])
def test_a_checkpoint_of_deepspeed_gives_the_loss_that_deepspeed_had(dtype: str, stages: int):
    def call(evaluator: Evaluator) -> float | None:
        evaluator.load_state_dir(DEEPSPEED / dtype)
        return evaluator.eval_batch(iter(micro_batches(dtype)), num_micro_batches=4).loss

    tolerance = {"float32": 1e-7, "bfloat16": 2e-3}[dtype]  # it rounds its mean to the dtype
    for loss in on_grid(lambda: layers(dtype), call, stages=stages):
        assert loss == pytest.approx(LOSSES[dtype], rel=tolerance)


def loaded(directory: Path, stages: int = 2) -> dict[str, torch.Tensor]:
    def call(evaluator: Evaluator) -> dict[str, torch.Tensor]:
        evaluator.load_state_dir(directory)
        return state_of(list(evaluator.module), evaluator.boundaries[evaluator.stage_id])

    parts = on_grid(layers, call, stages=stages)
    return {name: value for part in parts for name, value in part.items()}


def test_tensors_are_those_in_the_files_also_buffers_of_integers():
    state = loaded(DEEPSPEED / "float32")
    for file in sorted((DEEPSPEED / "float32" / TAG).glob("layer_*.pt")):
        for name, value in torch.load(file, weights_only=True).items():
            assert torch.equal(state[f"{int(file.name[6:8])}.{name}"], value)


def test_the_directory_of_a_tag_will_do():
    expected, found = loaded(DEEPSPEED / "float32"), loaded(DEEPSPEED / "float32" / TAG)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(DEEPSPEED / "float32" / TAG, tmp_path / TAG)
    (tmp_path / "latest").write_text(f"{TAG}\n")
    return tmp_path


def refusal(directory: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        loaded(directory)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_files_with_a_rank_in_their_names_are_read(copy: Path):
    for file in sorted((copy / TAG).glob("layer_*")):
        file.rename(file.with_name(file.name.replace("-model_states", "-model_00-model_states")))
    expected, found = loaded(DEEPSPEED / "float32"), loaded(copy)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    file = copy / TAG / "layer_04-model_00-model_states.pt"
    shutil.copy(file, file.with_name("layer_04-model_01-model_states.pt"))
    assert "layer 4 is split over 2 files" in refusal(copy)


def test_a_truncated_or_missing_file_is_named(copy: Path):
    file = copy / TAG / "layer_06-model_states.pt"
    file.write_bytes(file.read_bytes()[:-40])
    assert f"layer 6: {file} is damaged, cut off, or older" in refusal(copy)
    file.unlink()
    assert "layer 6 in" in refusal(copy)
    assert "tensor bias is missing" in refusal(copy)


def test_a_damaged_tensor_is_named(copy: Path):
    file = copy / TAG / "layer_06-model_states.pt"
    bias = torch.load(file, weights_only=True)["bias"].numpy().tobytes()
    content = file.read_bytes()
    assert content.count(bias) == 1
    file.write_bytes(content.replace(bias, bytes(len(bias))))
    assert refusal(copy) == (
        f"layer 6: tensor bias in {file} is damaged: it does not have its CRC-32"
    )


def test_code_in_a_file_is_not_run(copy: Path):
    class Payload:
        def __reduce__(self):
            return (Path(copy / "ran").touch, ())

    torch.save({"weight": Payload()}, copy / TAG / "layer_00-model_states.pt")
    assert "layer 0: " in refusal(copy)
    assert "cannot be read" in refusal(copy)
    assert not (copy / "ran").exists()


@pytest.mark.parametrize("content", [[torch.zeros(2)], {"weight": {"nested": torch.zeros(2)}}])
def test_content_that_is_no_flat_dict_of_tensors_is_refused(copy: Path, content: object):
    torch.save(content, copy / TAG / "layer_00-model_states.pt")
    assert "needed a dict of tensors" in refusal(copy)


def test_a_tag_that_is_not_there_and_layers_beyond_the_model_are_refused(copy: Path):
    torch.save({}, copy / TAG / "layer_09-model_states.pt")
    assert "holds layer 9, and the model has 8 layers from 0 on" in refusal(copy)
    for tag in ("gone", "../elsewhere", ""):
        (copy / "latest").write_text(tag)
        assert f"names the tag {tag!r}, and there is no such directory" in refusal(copy)
