"""Files of models that were made to do harm end in one sentence, soon, and in little memory."""

import json
import os
import resource
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from transformers import CONFIG_MAPPING

from runtime.checkpoint import CheckpointError, open_layers
from runtime.checkpoint.formats import torch_files
from runtime.checkpoint.formats.native import NativeCheckpoint
from runtime.checkpoint.formats.safetensors_files import read_specs
from runtime.language.models import load_tokenizer, locate_model, skeleton
from runtime.language.models.described import describe
from runtime.language.models.encoder import require_mean_pooling
from runtime.language.models.errors import ModelError
from runtime.language.models.files import directory as model_directory
from runtime.language.models.files.beside import files_beside
from runtime.language.models.files.directory import (
    read_config,
    read_object,
    require_all_is_read,
    weight_map,
)
from runtime.language.models.gguf.cache import converted
from runtime.language.models.gguf.header import MOST_ELEMENTS, check_header
from schedcc.io.plain_text import LONGEST
from tests.support.families import FAMILIES
from tests.support.other_users import NOBODY, root_only
from tests.support.tiny_models import tiny_tokenizer
from tests.tools.fuzz.models import gguf_file

HUGE = 2**60
ARRAY, UINT8, STRING, UINT32 = 9, 0, 8, 4


def gguf_of(fields: bytes = b"", *, count: int = 1, tensors: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, count) + fields + bytes(64)


def key(kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", 1) + b"k" + struct.pack("<I", kind) + value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gguf_of(count=HUGE), f"has {HUGE:,} entries in its metadata, needed at most 4,096"),
        (gguf_of(count=0, tensors=HUGE), f"has {HUGE:,} tensors, needed at most 262,144"),
        (
            gguf_of(key(ARRAY, struct.pack("<IQ", UINT8, HUGE))),
            f"has {HUGE:,} elements in its arrays, needed at most {MOST_ELEMENTS:,}",
        ),
        (gguf_of(key(ARRAY, struct.pack("<IQ", UINT32, 1000))), "goes on for 4,000 bytes"),
        (gguf_of(key(ARRAY, struct.pack("<IQ", STRING, 1000))), "goes on for"),
        (gguf_of(key(ARRAY, struct.pack("<IQ", ARRAY, 1) * 3000)), "has a value of type 9"),
        (gguf_of(key(STRING, struct.pack("<Q", HUGE))), f"goes on for {HUGE:,} bytes"),
        (gguf_of(key(77, b"")), "has a value of type 77"),
        (gguf_of(version=1), "is of version 1, needed 2 or 3"),
        (
            gguf_of(
                key(UINT32, bytes(4))[:9] + struct.pack("<IIQ", 0, 0, HUGE), count=0, tensors=1
            ),
            f"has {HUGE:,} bytes before a tensor",
        ),
        (b"GGUF\x03\x00", "goes on for 4 bytes, needed at most 2 more"),
        (b"GGML", "does not start with GGUF"),
    ],
)
def test_counts_in_a_gguf_header_are_not_believed(tmp_path, content, message):
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(ModelError, match="cannot be read, and may be damaged") as refused:
        check_header(tmp_path / "m.gguf")
    assert message in str(refused.value)


def test_the_header_of_a_gguf_file_of_either_byte_order_passes(tmp_path):
    (tmp_path / "m.gguf").write_bytes(gguf_file())
    check_header(tmp_path / "m.gguf")
    head = b"GGUF" + struct.pack(">IQQ", 3, 0, 1)
    plain = struct.pack(">Q", 1) + b"k" + struct.pack(">II", UINT32, 5)
    (tmp_path / "m.gguf").write_bytes(head + plain)
    check_header(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    "name", ["../other.safetensors", "/etc/passwd", "a/../../b", "", r"\ud800", r"\u0000"]
)
def test_an_index_that_leads_out_of_its_directory_is_refused(tmp_path, name):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(f'{{"weight_map": {{"w": "{name}"}}}}')
    with pytest.raises(ModelError, match="needed a place in the directory that it is in"):
        weight_map(index)


@pytest.mark.parametrize("name", ["../save", "/tmp", "save-0123", "save-" + "0" * 16 + "/.."])
def test_a_manifest_that_leads_out_of_its_directory_is_refused(tmp_path, name):
    content = f'{{"format": "schedcc.checkpoint/1", "directory": "{name}", "layers": []}}'
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(CheckpointError, match="directory: String should match pattern"):
        NativeCheckpoint(tmp_path)


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000, b"\xff"])
def test_json_that_is_deep_or_no_json_is_one_sentence(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"config\.json is damaged: ") as refused:
        read_object(tmp_path / "config.json")
    assert "\n" not in str(refused.value)


def test_a_configuration_or_manifest_of_a_terabyte_is_refused_unread(tmp_path):
    for name in ("config.json", "manifest.json"):
        (tmp_path / name).touch()
        os.truncate(tmp_path / name, 2**40)
    most = f"holds {2**40:,} bytes, needed at most"
    with pytest.raises(ModelError, match=f"damaged: {most} {model_directory.MOST_BYTES:,}"):
        read_object(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match=f"damaged: it {most}"):
        NativeCheckpoint(tmp_path)


def test_a_safetensors_header_that_claims_more_than_there_is_is_refused(tmp_path):
    file = tmp_path / "m.safetensors"
    header = b'{"w":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'
    for content in (struct.pack("<Q", HUGE), struct.pack("<Q", len(header)) + header):
        file.write_bytes(content + bytes(16))
        with pytest.raises(CheckpointError, match="is damaged or cut off"):
            read_specs(file)


def test_compressed_records_in_a_file_of_torch_are_refused_unread(tmp_path):
    torch.save({"w": torch.zeros(1000)}, tmp_path / "plain.pt")
    assert list(torch_files.read_specs(tmp_path / "plain.pt")) == ["w"]
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(CheckpointError, match=r"its record .* is compressed, needed a file of"):
        torch_files.read_specs(tmp_path / "packed.pt")


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """A cache that another user could have put a model into, but for its permissions."""
    directory = tmp_path / "cache"
    directory.mkdir(mode=0o755)
    monkeypatch.setenv("SCHEDCC_CACHE", str(directory))
    (tmp_path / "m.gguf").write_bytes(gguf_file())
    return directory


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o775, 0o757])
def test_a_cache_that_others_can_write_to_is_refused(tmp_path, cache, mode):
    cache.chmod(mode)
    with pytest.raises(ModelError, match=f"with mode {mode:o}, needed one of user") as refused:
        converted(tmp_path / "m.gguf")
    assert str(cache) in str(refused.value)
    assert list(cache.iterdir()) == []


@root_only
def test_a_cache_of_another_user_is_refused(tmp_path, cache):
    os.chown(cache, NOBODY, NOBODY)
    with pytest.raises(ModelError, match=f"is of user {NOBODY} with mode 755"):
        converted(tmp_path / "m.gguf")


def test_the_name_of_a_file_that_is_converted_moves_no_cursor(tmp_path, cache, capsys):
    file = tmp_path / "\x1b[2J.gguf"
    file.write_bytes(gguf_file())
    with pytest.raises(ModelError):
        converted(file)
    assert f"converting {tmp_path}/\\x1b[2J.gguf to safetensors" in capsys.readouterr().err
    assert list(cache.glob("*-*")) == []


def test_a_cache_that_is_made_is_that_of_its_user(tmp_path, monkeypatch):
    monkeypatch.setenv("SCHEDCC_CACHE", str(tmp_path / "new"))
    (tmp_path / "m.gguf").write_bytes(gguf_file())
    with pytest.raises(ModelError):  # the file holds no whole model
        converted(tmp_path / "m.gguf")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700


CONFIG = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 8,
}


def model_of(folder: Path, **settings: object) -> Path:
    (folder / "config.json").write_text(json.dumps(CONFIG | settings))
    (folder / "model.safetensors").touch()
    return folder


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"n_routed_experts": 10**30}, "n_routed_experts"),
        ({"text_config": {"num_layers": 2**16 + 1}}, "num_layers"),
        ({"n_layer": 2**16 + 1}, "n_layer"),
        ({"zero_expert_num": 2**16 + 1}, "zero_expert_num"),
    ],
)
def test_a_configuration_of_more_layers_than_any_model_has_is_refused_unbuilt(
    tmp_path, settings, key
):
    with pytest.raises(
        ModelError, match=f"config.json sets {key} to [0-9]+, needed at most 65,536"
    ):
        locate_model(str(model_of(tmp_path, **settings)))


@pytest.mark.parametrize("family", [*FAMILIES, "gemma3n_text", "gemma4_text"])
def test_a_family_has_fewer_layers_than_may_be(tmp_path, family):
    (tmp_path / "config.json").write_text(CONFIG_MAPPING[family]().to_json_string(use_diff=False))
    assert read_config(tmp_path)["model_type"] == family


@pytest.mark.parametrize(
    ("bound", "settings", "what"),
    [
        ("MOST_MODULES", {"num_hidden_layers": 30}, "modules or more, needed at most 100"),
        ("MOST_ELEMENTS", {"head_dim": 10_000}, "elements in a tensor or more, needed at most 100"),
    ],
)
def test_a_model_that_would_grow_without_end_is_not_built(
    tmp_path, monkeypatch, bound, settings, what
):
    monkeypatch.setattr(skeleton, bound, 100)
    with pytest.raises(ModelError, match=what):
        describe(model_of(tmp_path, **settings), "the model")
    monkeypatch.undo()
    assert len(describe(model_of(tmp_path, **settings), "the model").layers) > 3


def test_the_experts_of_a_real_model_are_described_without_memory(tmp_path):
    """Those of Llama 4 Maverick: 1e10 elements in a tensor that its layers fill with zeros."""
    sizes = {"hidden_size": 5120, "intermediate_size": 8192, "num_local_experts": 128}
    heads = {"num_attention_heads": 40, "num_key_value_heads": 8, "num_hidden_layers": 1}
    folder = model_of(tmp_path, model_type="llama4_text", **sizes, **heads)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    experts = describe(folder, "the model").model.get_parameter(
        "model.layers.0.feed_forward.experts.gate_up_proj"
    )
    assert (experts.device.type, experts.shape) == ("meta", (128, 5120, 16384))
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert kilobytes < 2**20  # of 40 times as many, for the zeros


def test_a_mask_that_is_too_large_is_refused_and_weights_as_large_are_not(tmp_path, monkeypatch):
    """The mask of GPT-Neo, which it makes of ones."""
    monkeypatch.setattr(skeleton, "MOST_ELEMENTS", 1000)
    family = {"model_type": "gpt_neo", **FAMILIES["gpt_neo"]}
    folder = model_of(tmp_path, **family | {"max_position_embeddings": 20})
    model = describe(folder, "the model").model
    assert max(weight.numel() for weight in model.parameters()) > 1000
    model_of(tmp_path, **family | {"max_position_embeddings": 100})
    with pytest.raises(ModelError, match="asks for 10,000 elements in a tensor or more, needed"):
        describe(folder, "the model")


def test_a_result_that_is_given_its_place_is_bounded_too():
    with skeleton._Bounded("the model"):
        assert torch.arange(3, out=torch.empty(3, dtype=torch.int64)).tolist() == [0, 1, 2]
        assert torch.zeros(2, out=torch.ones(2)).tolist() == [0, 0]
        place = torch.empty(0)
        with pytest.raises(ModelError, match="asks for 2,147,483,648 elements in a tensor or"):
            torch.zeros(2**31, out=place)


@pytest.mark.parametrize("rope", [[1], "x", 7, {"rope_type": ["x"]}])
def test_a_rotary_embedding_that_is_none_is_one_sentence(tmp_path, rope):
    model = model_of(tmp_path, rope_scaling=rope)
    assert locate_model(str(model)).num_blocks == 2
    with pytest.raises(ModelError) as refused:
        describe(model, "the model")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["a" * 256, "a" * 5000, "é" * 128])
def test_a_name_that_no_file_can_have_is_refused(tmp_path, name):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(ModelError, match="needed a place in the directory that it is") as refused:
        weight_map(index)
    assert len(str(refused.value)) <= LONGEST


@pytest.mark.parametrize("tag", [b"a" * 5000, b"a\0b", b"..", b"/", b"\xff", b""])
def test_a_tag_that_is_no_directory_beside_it_is_refused(tmp_path, tag):
    (tmp_path / "latest").write_bytes(tag)
    with pytest.raises(CheckpointError, match="and there is no such directory"):
        open_layers(tmp_path)
    model = model_of(tmp_path)
    require_all_is_read(model)  # beside weights, the file of another program


def test_records_that_lie_in_each_other_are_refused_unread(tmp_path):
    torch.save({"w": torch.zeros(1000)}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt", "a") as archive:
        (record,) = [each for each in archive.infolist() if each.file_size >= 4000]
        archive.filelist += [record] * 10  # in the directory of the archive, not in its contents
        archive.writestr("more", b"")
    assert os.path.getsize(tmp_path / "plain.pt") < 10_000
    with pytest.raises(CheckpointError, match="its records overlap, needed a file of"):
        torch_files.read_specs(tmp_path / "plain.pt")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("added_tokens.json", {"</s>": [1]}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "</s>"}}}),
        ("tokenizer_config.json", {"added_tokens_decoder": [1]}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"0": 1}}),
    ],
)
def test_added_tokens_that_are_none_are_one_sentence(tmp_path, file, content):
    tiny_tokenizer().save_pretrained(tmp_path)
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(ModelError) as refused:
        load_tokenizer(locate_model(str(model_of(tmp_path))))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("path", [5, None, ["x"], "a" * 300, "\0"])
def test_steps_of_an_encoder_that_lead_nowhere_are_one_sentence(tmp_path, path):
    kinds = (("", "Transformer"), (path, "Pooling"), ("2", "Normalize"))
    steps = [{"type": f"x.{kind}", "path": place} for place, kind in kinds]
    (tmp_path / "modules.json").write_text(json.dumps(steps))
    assert files_beside(tmp_path) == [tmp_path / "modules.json"]
    with pytest.raises(ModelError) as refused:
        require_mean_pooling(tmp_path)
    assert str(refused.value).isprintable()
