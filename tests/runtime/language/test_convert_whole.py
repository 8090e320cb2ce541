"""A conversion is whole or did not happen, and asks of a checkpoint what an evaluation asks."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from runtime.checkpoint import CheckpointError, replace, write
from runtime.cli import main
from runtime.language.convert import convert
from runtime.language.models import ModelError, lazy_causal_lm, load_tokenizer, locate_model
from tests.runtime.language.models.test_directory import pooling
from tests.runtime.language.models.test_encoder import directory as encoder_directory  # noqa: F401 (a fixture)
from tests.runtime.language.models.test_lazy import (
    assert_equal,
    change_weights,
    logits_of_transformers,
    logits_over_stages,
)
from tests.runtime.language.models.test_tokenizer_files import configure
from tests.runtime.language.test_convert_inspect import DEEPSPEED, assert_same_tensors
from tests.support.checkpoints import save
from tests.support.tiny_models import tiny_model, tiny_tokenizer

FORMATS = ("layers", "deepspeed", "hf")


def model(directory: Path, **changes: int) -> Path:
    tiny_model("llama", **changes).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A model by layers, and its tokenizer, with an added token of its own."""
    source = model(tmp_path / "old", seed=1)
    configure(extra_special_tokens=["<old>"])(source)
    (source / "added_tokens.json").write_text('{"<old>": 261}')
    convert(str(source), tmp_path / "good", "layers")
    return tmp_path / "good"


def content(directory: Path) -> dict[str, bytes]:
    files = (path for path in sorted(directory.rglob("*")) if path.is_file())
    return {str(file.relative_to(directory)): file.read_bytes() for file in files}


def names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def damage(source: Path) -> None:
    file = source / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


DEFECTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "damaged": (damage, "is damaged or cut off"),
    "without a block": (
        lambda source: change_weights(
            source, lambda w: [w.pop(n) for n in list(w) if ".layers.1." in n]
        ),
        "the checkpoint lacks 9 tensors, block.input_layernorm.weight of layer 2 among them",
    ),
    "a block too many": (
        lambda source: change_weights(
            source, lambda w: w.update({"model.layers.3.mlp.up_proj.weight": torch.ones(2)})
        ),
        "adds 1 tensor, model.layers.3.mlp.up_proj.weight among them",
    ),
    "a tensor of no layer": (
        lambda source: change_weights(source, lambda w: w.update({"score": torch.ones(2)})),
        "adds 1 tensor, score among them",
    ),
    "another shape": (
        lambda source: change_weights(
            source, lambda w: w.update({"model.norm.weight": torch.ones(65)})
        ),
        "model.norm.weight is [65], and [64] is needed",
    ),
    "an adapter": (
        lambda source: (source / "adapter_config.json").write_text("{}"),
        "holds an adapter",
    ),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_what_cannot_be_evaluated_is_not_converted_and_nothing_changes(
    tmp_path: Path, good: Path, defect: str
):
    source = model(tmp_path / "new")
    change, problem = DEFECTS[defect]
    change(source)
    before = content(good)
    for to, place in [*((to, tmp_path / to) for to in FORMATS), ("layers", good)]:
        with pytest.raises((CheckpointError, ModelError)) as caught:
            convert(str(source), place, to)
        assert problem in str(caught.value)
    assert content(good) == before
    assert names(tmp_path) == ["good", "new", "old"]


@pytest.mark.parametrize("defect", ["damaged", "without a block"])
def test_a_defect_ends_with_status_2_and_one_line(tmp_path, monkeypatch, capsys, defect):
    source = model(tmp_path / "new")
    DEFECTS[defect][0](source)
    monkeypatch.setattr(sys, "argv", ["pipeval", "convert", str(source), str(tmp_path / "to")])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out, err.count("\n")) == (2, "", 1)
    assert not (tmp_path / "to").exists()


def test_a_replaced_checkpoint_is_replaced_with_its_configuration_and_tokenizer(
    tmp_path: Path, good: Path
):
    source = model(tmp_path / "new", num_hidden_layers=2)
    expected = logits_of_transformers(source, torch.float32)
    convert(str(source), good, "layers")
    files = locate_model(str(good))
    assert files.num_blocks == 2
    assert_equal(logits_over_stages(lazy_causal_lm(files), 2), expected)
    assert len(load_tokenizer(files)) == 261  # nothing of the former one is left
    assert "added_tokens.json" not in names(good)
    assert names(tmp_path) == ["good", "new", "old"]


def test_a_checkpoint_can_replace_itself(good: Path):
    before = {name: data for name, data in content(good).items() if "/" not in name}
    convert(str(good), good, "layers")
    after = content(good)
    assert after.keys() >= before.keys()
    assert all(after[name] == data for name, data in before.items() if name != "manifest.json")


@pytest.mark.parametrize("missing", [False, True])
def test_a_conversion_that_ends_at_any_step_leaves_the_former_or_the_new_one(
    tmp_path: Path, good: Path, monkeypatch: pytest.MonkeyPatch, missing: bool
):
    source = model(tmp_path / "new")
    convert(str(source), tmp_path / "finished", "layers")
    former = {} if missing else content(good)
    if missing:
        shutil.rmtree(good)
    new = beside(content(tmp_path / "finished"))
    assert beside(former) != new
    steps = 0
    while not good.exists() or beside(content(good)) != new:
        with monkeypatch.context() as patch:
            patch.setattr(replace, "synchronise", interrupted_after(steps))
            try:
                convert(str(source), good, "layers")
            except KeyboardInterrupt:
                found = content(good) if good.exists() else {}
                assert found == former or (beside(found) == new and "manifest.json" in found)
                assert not any(name.endswith(".unfinished") for name in names(tmp_path))
        steps += 1
    assert steps > 5
    assert_same_tensors(good, source)


def beside(files: dict[str, bytes]) -> dict[str, bytes]:
    """What is not of a save, each of which has a name of its own."""
    return {name: data for name, data in files.items() if not name.startswith(("save-", "mani"))}


def interrupted_after(steps: int) -> Callable[[Path], None]:
    """What writes to the disk so many times, and then is interrupted."""
    left = iter(range(steps))

    def synchronise(path: Path) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        write.synchronise(path)

    return synchronise


@pytest.mark.parametrize("exchange", [True, False])
def test_a_directory_takes_the_place_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
):
    if not exchange:  # as where the system or the file system cannot
        monkeypatch.setattr(replace.ctypes, "CDLL", lambda *_, **__: object())
    place = tmp_path / "place"
    for word in ("first", "second"):
        replace.at_once(place, lambda new, word=word: (new / word).write_text(word))
        assert content(place) == {word: word.encode()}
        assert names(tmp_path) == ["place"]


def test_what_a_killed_conversion_left_is_removed_by_the_next_and_nothing_that_is_in_use(
    tmp_path: Path,
):
    left = tmp_path / ".place.0123abcd.unfinished"
    (left / "save").mkdir(parents=True)
    others: list[list[str]] = []

    def convert_meanwhile(new: Path) -> None:
        others.append(names(tmp_path))
        replace.at_once(tmp_path / "place", lambda other: (other / "b").write_text("b"))
        (new / "a").write_text("a")

    replace.at_once(tmp_path / "place", convert_meanwhile)
    assert left.name not in others[0]
    assert content(tmp_path / "place") == {"a": b"a"}
    assert names(tmp_path) == ["place"]


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file/to cannot be written"):
        convert(str(DEEPSPEED), tmp_path / "file" / "to", "layers")


def test_a_relative_place_and_a_link_will_do(
    tmp_path: Path, good: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    convert(str(good), Path(), "layers")
    assert_same_tensors(tmp_path / "here", good)
    (tmp_path / "link").symlink_to(good)
    convert(str(model(tmp_path / "new")), tmp_path / "link", "layers")
    assert (tmp_path / "link").is_symlink()
    assert_same_tensors(good, tmp_path / "new")


def test_files_of_others_beside_a_checkpoint_are_not_removed(tmp_path: Path, good: Path):
    (good / "thesis.txt").write_text("years of work")
    before = content(good)
    with pytest.raises(CheckpointError, match=r"holds thesis\.txt, which is no part of a checkp"):
        convert(str(model(tmp_path / "new")), good, "layers")
    assert content(good) == before


def test_damage_does_not_get_a_checksum_of_its_own(tmp_path: Path):
    manifest = save(tmp_path / "layers")
    file = tmp_path / "layers" / manifest.directory / "layer_01.safetensors"
    damaged = bytearray(file.read_bytes())
    damaged[-1] ^= 1
    file.write_bytes(damaged)
    for to in ("layers", "deepspeed"):
        with pytest.raises(CheckpointError, match=r"layer 1, .*: tensor weight is damaged"):
            convert(str(tmp_path / "layers"), tmp_path / to / "new", to)
        assert not (tmp_path / to / "new").exists()


def test_layers_of_another_model_than_the_configuration_beside_them_are_refused(
    tmp_path: Path, good: Path
):
    other = json.loads((good / "config.json").read_text()) | {"intermediate_size": 100}
    (good / "config.json").write_text(json.dumps(other))
    with pytest.raises(ModelError, match=r"is \[64, 96\], and \[64, 100\] is needed"):
        convert(str(good), tmp_path / "to", "hf")


def test_layers_of_a_family_that_is_not_known_convert_as_they_are(tmp_path: Path):
    shutil.copytree(DEEPSPEED, tmp_path / "deepspeed")
    (tmp_path / "deepspeed" / "config.json").write_text('{"model_type": "mine"}')
    convert(str(tmp_path / "deepspeed"), tmp_path / "layers", "layers")
    assert_same_tensors(tmp_path / "layers", DEEPSPEED)


def test_tensors_that_no_evaluation_uses_are_told(tmp_path: Path):
    source = model(tmp_path / "hf")
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    change_weights(source, lambda weights: weights.update({name: torch.ones(8)}))
    assert convert(str(source), tmp_path / "layers", "layers") == (
        "5 layers, 30 tensors; left out, since no evaluation uses them: 1 tensor, "
        f"{name} among them"
    )


def test_an_encoder_comes_with_the_steps_after_it_and_can_be_converted_again(
    tmp_path: Path,
    encoder_directory: Path,  # noqa: F811
):
    for _ in range(2):
        summary = convert(str(encoder_directory), tmp_path / "layers", "layers")
        assert "3 tensors, embeddings.position_ids among them" in summary
    convert(str(tmp_path / "layers"), tmp_path / "again", "hf")
    for file in ("modules.json", "1_Pooling/config.json"):
        assert (tmp_path / "again" / file).read_bytes() == (encoder_directory / file).read_bytes()
    pooling(tmp_path / "again", pooling_mode_cls_token=True)
    with pytest.raises(ModelError, match="sets pooling_mode_cls_token"):
        convert(str(tmp_path / "again"), tmp_path / "third", "layers")
