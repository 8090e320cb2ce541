"""`pipeval convert` and `pipeval inspect`: checkpoints from format to format, bit for bit."""

import json
import os
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from runtime.checkpoint import CheckpointError
from runtime.cli import main
from runtime.language.convert import convert
from runtime.language.inspect import inspection
from runtime.language.models import (
    ModelError,
    layer_costs,
    lazy_causal_lm,
    load_causal_lm,
    locate_model,
)
from runtime.language.models.cost import DEFAULT_SEQUENCE_LENGTH
from runtime.language.models.sources import open_source
from runtime.modules.partition import balanced
from schemas import CheckpointInspection, CheckpointManifest
from tests.runtime.language.models.test_lazy import (
    assert_equal,
    ids_of,
    logits_of_transformers,
    logits_over_stages,
)
from tests.support.checkpoints import load, model, save, state_of
from tests.support.forks import Program, run_pipeval
from tests.support.paths import DATA
from tests.support.tiny_models import CONFIGS, saved_llama, tiny_model, tiny_tokenizer, write_gguf

DEEPSPEED = DATA / "deepspeed" / "float32"


def tensors_of(name: Path) -> dict[tuple[int, str], torch.Tensor]:
    source = open_source(str(name))
    return {
        (index, name): stored.read().clone()
        for index in range(source.layers)
        for name, stored in source.tensors(index).items()
    }


def assert_same_tensors(found: Path, expected: Path) -> None:
    a, b = tensors_of(found), tensors_of(expected)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a)


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_a_model_goes_through_all_formats_and_back_without_a_changed_bit(
    tmp_path: Path, family: str
):
    places = [tmp_path / name for name in ("hf", "layers", "deepspeed", "again")]
    tiny_model(family).save_pretrained(places[0])
    expected = logits_of_transformers(places[0], torch.float32)
    steps = zip(pairwise(places), ["layers", "deepspeed", "hf"], strict=True)
    for (before, after), to in steps:
        convert(str(before), after, to)
        assert_same_tensors(after, places[0])
    assert_equal(logits_of_transformers(places[3], torch.float32), expected)
    for place in places[1:3]:
        by_layers = locate_model(str(place))
        assert_equal(logits_over_stages(lazy_causal_lm(by_layers), 3), expected)
        whole = load_causal_lm(by_layers)
        with torch.no_grad():
            logits = [whole(input_ids=ids, use_cache=False).logits for ids in ids_of()]
        assert_equal(logits, expected)


def test_tied_weights_are_stored_once_in_every_format_that_can(tmp_path: Path):
    tiny_model("llama").save_pretrained(tmp_path / "hf")
    convert(str(tmp_path / "hf"), tmp_path / "layers", "layers")
    manifest = CheckpointManifest.model_validate_json(
        (tmp_path / "layers/manifest.json").read_text()
    )
    head = next(t for t in manifest.layers[4].tensors if t.name == "lm.lm_head.weight")
    assert (head.stored_in, head.stored_as) == (0, "lm.model.embed_tokens.weight")
    convert(str(tmp_path / "layers"), tmp_path / "again", "hf")
    index = json.loads((tmp_path / "again/model.safetensors.index.json").read_text())
    assert "lm_head.weight" not in index["weight_map"]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "again").config.tie_word_embeddings


def test_an_encoder_converts_too(tmp_path: Path):
    from transformers import BertConfig

    torch.manual_seed(0)
    config = BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=20)
    AutoModel.from_config(config).save_pretrained(tmp_path / "hf")
    convert(str(tmp_path / "hf"), tmp_path / "layers", "layers")
    assert_same_tensors(tmp_path / "layers", tmp_path / "hf")


def test_a_gguf_file_becomes_layers_with_its_tokenizer(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("SCHEDCC_CACHE", str(tmp_path / "cache"))
    path = write_gguf(tmp_path / "m.gguf", tiny_model("llama"))
    convert(str(path), tmp_path / "layers", "layers")
    assert (tmp_path / "layers" / "tokenizer.json").is_file()
    assert_same_tensors(tmp_path / "layers", path)


def test_a_checkpoint_of_deepspeed_becomes_layers_and_comes_back(tmp_path: Path):
    convert(str(DEEPSPEED), tmp_path / "layers", "layers")
    convert(str(tmp_path / "layers"), tmp_path / "back", "deepspeed")
    assert_same_tensors(tmp_path / "back", DEEPSPEED)
    file = "layer_05-model_states.pt"
    ours, theirs = (
        torch.load(directory / file, weights_only=True)
        for directory in (tmp_path / "back" / "converted", DEEPSPEED / "tag0")
    )
    assert ours.keys() == theirs.keys()
    assert (tmp_path / "back" / "latest").read_text() == "converted"


def test_a_checkpoint_of_any_layers_can_be_given_to_deepspeed(tmp_path: Path):
    save(tmp_path / "layers", stages=2)
    convert(str(tmp_path / "layers"), tmp_path / "deepspeed", "deepspeed")
    found, expected = load(tmp_path / "deepspeed", stages=3), state_of(model())
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_what_is_no_language_model_cannot_become_one(tmp_path: Path):
    save(tmp_path / "layers")
    with pytest.raises(CheckpointError, match=r"has no config\.json, .* name .* with --config"):
        convert(str(tmp_path / "layers"), tmp_path / "hf", "hf")
    tiny_model("llama").save_pretrained(tmp_path / "model")
    with pytest.raises(CheckpointError, match="holds 7 layers, and the model has 5"):
        convert(str(tmp_path / "layers"), tmp_path / "hf", "hf", tmp_path / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["layers", "model"]


def test_a_configuration_from_elsewhere_makes_a_model_of_bare_layers(tmp_path: Path):
    tiny_model("gpt2").save_pretrained(tmp_path / "hf")
    tiny_tokenizer().save_pretrained(tmp_path / "hf")
    convert(str(tmp_path / "hf"), tmp_path / "layers", "layers")
    for file in (tmp_path / "layers").glob("*.json"):
        if file.name != "manifest.json":
            file.unlink()
    convert(str(tmp_path / "layers"), tmp_path / "again", "hf", tmp_path / "hf")
    expected = logits_of_transformers(tmp_path / "hf", torch.float32)
    assert_equal(logits_of_transformers(tmp_path / "again", torch.float32), expected)
    assert (tmp_path / "again" / "tokenizer.json").is_file()


def test_what_is_there_is_not_overwritten_unless_it_is_a_checkpoint(tmp_path: Path):
    place = tmp_path / "place"
    place.mkdir()
    (place / "thesis.txt").write_text("years of work")
    for to in ("layers", "deepspeed", "hf"):
        with pytest.raises(CheckpointError, match="is there already, needed an empty or new"):
            convert(str(DEEPSPEED), place, to)
    assert [path.name for path in place.iterdir()] == ["thesis.txt"]
    save(tmp_path / "layers")
    convert(str(DEEPSPEED), tmp_path / "layers", "layers")
    assert_same_tensors(tmp_path / "layers", DEEPSPEED)


def run(monkeypatch, capsys, *arguments: object) -> tuple[object, str, str]:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "argv", ["pipeval", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return (ended.value.code, *capsys.readouterr())


def test_inspection_shows_layers_sizes_and_a_partition(tmp_path, monkeypatch, capsys):
    save(tmp_path)
    status, out, _ = run(monkeypatch, capsys, "inspect", tmp_path, "-S", 2, "--verify")
    assert status == 0
    assert "per-layer safetensors, 7 layers" in out
    assert "all tensors read and as they were saved" in out
    for word in ("Embedding", "Counted", "bfloat16, bool, int64", "2 stages, by bytes"):
        assert word in out
    status, out, _ = run(monkeypatch, capsys, "inspect", tmp_path, "-S", 2, "--json")
    found = CheckpointInspection.model_validate_json(out)
    assert [layer.bytes for layer in found.layers] == [240, 168, 0, 34, 84, 0, 280]
    assert found.bytes == sum(stage.bytes for stage in found.stages) == 806
    assert [stage.first_layer for stage in found.stages] == [0, 2]
    assert not found.verified


def test_the_partition_of_a_language_model_is_that_of_an_evaluation(tmp_path, monkeypatch, capsys):
    saved_llama(tmp_path)
    layers = lazy_causal_lm(locate_model(str(tmp_path))).layers
    expected = balanced(layer_costs(layers, DEFAULT_SEQUENCE_LENGTH - 1), 2)
    _, out, _ = run(monkeypatch, capsys, "inspect", tmp_path, "-S", 2, "--json")
    found = CheckpointInspection.model_validate_json(out)
    assert found.balanced_by == "arithmetic"
    assert [stage.first_layer for stage in found.stages] == list(expected[:-1])
    assert "2 stages, as pipeval divides" in run(monkeypatch, capsys, "inspect", tmp_path, "-S2")[1]


def inspect_for_nobody(directory: Path) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    os.dup2(writes, 1)
    run_pipeval(["inspect", directory])


def test_a_reader_that_goes_away_is_no_fault():
    done = Program(inspect_for_nobody, DEEPSPEED).ended()
    assert (done.returncode, done.stderr) == (1, "")


def test_a_file_is_shown_by_its_tensors(tmp_path, monkeypatch, capsys):
    manifest = save(tmp_path)
    file = tmp_path / manifest.directory / "layer_03.safetensors"
    status, out, _ = run(monkeypatch, capsys, "inspect", file)
    assert status == 0
    assert "norm.weight" in out
    assert "a file of tensors" in out
    status, out, _ = run(
        monkeypatch, capsys, "inspect", DEEPSPEED / "tag0/layer_05-model_states.pt"
    )
    assert (status, "steps" in out) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["inspect", "no/such"], "no/such does not exist"),
        (["inspect", "pyproject.toml"], "is none of the files that are known"),
        (["inspect", "tests"], "tests holds no checkpoint"),
        (["inspect", DEEPSPEED, "-S", 9], "9 stages for 8 layers"),
        (["inspect", DEEPSPEED, "-S", 0], "stages is 0, needed an integer of at least 1"),
        (["convert", "no/such", "no/where"], "no/such does not exist"),
        (["--threads", 1, "inspect", DEEPSPEED], "--threads is an option of evaluating"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_status_2(monkeypatch, capsys, arguments, problem):
    status, out, err = run(monkeypatch, capsys, *arguments)
    assert (status, out) == (2, "")
    assert problem in err
    assert err.count("\n") == 1


def test_verification_finds_damage(tmp_path: Path):
    manifest = save(tmp_path)
    file = tmp_path / manifest.directory / "layer_01.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    inspection(str(tmp_path))
    with pytest.raises(CheckpointError, match=r"layer 1, .*: tensor weight is damaged"):
        inspection(str(tmp_path), verify=True)


def test_a_directory_with_a_broken_configuration_is_refused(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "nonesuch"}')
    with pytest.raises(ModelError, match=r"model type `nonesuch` but Transformers does not"):
        inspection(str(tmp_path))
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(ModelError, match=r"config\.json is damaged"):
        inspection(str(tmp_path))
