import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import gguf
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM

from benchmarks.model_memory import peak_bytes
from runtime.language.models import ModelError, load_causal_lm, load_tokenizer, locate_model
from runtime.language.models.gguf import conversion
from runtime.language.models.gguf.cache import converted
from tests.support.forks import Program
from tests.support.tiny_models import tiny_model, tiny_tokenizer, write_gguf

QWEN3 = {"head_dim": 128}  # the only width of heads that transformers gives to Qwen3 from GGUF


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SCHEDCC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "m.gguf", tiny_model("llama"))


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "m.gguf", tiny_model("llama")).read_bytes()


def folders(cache: Path) -> list[str]:
    return sorted(entry.name for entry in cache.iterdir() if entry.is_dir())


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        converted(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.mark.parametrize("storage", ["F32", "F16", "Q8_0", "Q4_1"])
@pytest.mark.parametrize(("family", "changes"), [("llama", {}), ("qwen2", {}), ("qwen3", QWEN3)])
def test_a_converted_file_holds_the_weights_that_transformers_reads_bit_for_bit(
    tmp_path: Path, family: str, changes: dict[str, object], storage: str
):
    path = write_gguf(
        tmp_path / "m.gguf",
        tiny_model(family, **changes),
        storage=gguf.GGMLQuantizationType[storage],
    )
    ours = load_causal_lm(locate_model(str(path))).state_dict()
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf").state_dict()
    assert {value.dtype for value in ours.values()} == {torch.float32}
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(("family", "changes"), [("llama", {}), ("qwen2", {}), ("qwen3", QWEN3)])
@torch.inference_mode()
def test_a_file_gives_the_logits_of_the_model_that_was_written_to_it(
    tmp_path: Path, family: str, changes: dict[str, object]
):
    written = tiny_model(family, **changes)
    loaded = load_causal_lm(locate_model(str(write_gguf(tmp_path / "m.gguf", written))))
    ids = torch.arange(18).view(2, 9)
    assert torch.equal(loaded(input_ids=ids).logits, written(input_ids=ids).logits)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_file_tells_what_the_directory_of_its_model_tells(tmp_path: Path, family: str):
    model = tiny_model(family)
    model.save_pretrained(tmp_path)
    path = write_gguf(tmp_path / "m.gguf", model)
    from_gguf, from_directory = locate_model(str(path)), locate_model(str(tmp_path))
    for field in ("model_type", "num_blocks", "hidden_size", "vocabulary_size"):
        assert getattr(from_gguf, field) == getattr(from_directory, field)
    assert from_gguf.limits.max_positions == from_directory.limits.max_positions


def test_a_file_is_converted_once_and_says_so_in_one_line(
    path: Path, cache: Path, capfd: pytest.CaptureFixture[str]
):
    capfd.readouterr()
    directory = converted(path)
    assert capfd.readouterr() == (
        "",
        f"converting {path} to safetensors, once, into {directory} ...\n",
    )
    assert folders(cache) == [directory.name]
    made = directory.stat().st_mtime_ns
    assert converted(path) == directory
    assert directory.stat().st_mtime_ns == made
    load_causal_lm(locate_model(str(path)))
    assert capfd.readouterr() == ("", "")


def test_a_changed_file_is_converted_anew(path: Path, cache: Path):
    before = locate_model(str(path))
    write_gguf(path, tiny_model("llama", seed=1))
    after = locate_model(str(path))
    assert folders(cache) == sorted([before.directory.name, after.directory.name])
    old, new = load_causal_lm(before).state_dict(), load_causal_lm(after).state_dict()
    assert not torch.equal(old["model.embed_tokens.weight"], new["model.embed_tokens.weight"])


def test_another_version_of_the_conversion_or_of_transformers_converts_anew(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    directories = {converted(path)}
    monkeypatch.setattr("runtime.language.models.gguf.cache._CONVERSION", 99)
    directories.add(converted(path))
    monkeypatch.setattr("runtime.language.models.gguf.cache.version", lambda _: "99.0")
    directories.add(converted(path))
    assert len(directories) == 3


def test_files_of_one_name_in_two_directories_are_two(path: Path, tmp_path: Path):
    (tmp_path / "other").mkdir()
    other = write_gguf(tmp_path / "other" / path.name, tiny_model("llama"))
    assert converted(path) != converted(other)


def test_a_relative_path_and_any_file_name_will_do(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path.rename(tmp_path / "weights.bin")
    monkeypatch.chdir(tmp_path)
    assert converted(Path("weights.bin")) == converted(tmp_path / "weights.bin")


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({"SCHEDCC_CACHE": "a", "XDG_CACHE_HOME": "b"}, "a"),
        ({"SCHEDCC_CACHE": "", "XDG_CACHE_HOME": "b"}, "b/schedcc"),
        ({"SCHEDCC_CACHE": "", "XDG_CACHE_HOME": ""}, ".cache/schedcc"),
    ],
)
def test_the_cache_is_where_the_environment_says(
    path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    place: str,
):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in variables.items():
        monkeypatch.setenv(name, value and str(tmp_path / value))
    assert converted(path).parent == tmp_path / place


def test_threads_that_ask_at_once_convert_once(path: Path, monkeypatch: pytest.MonkeyPatch):
    calls, entered, proceed = [], Event(), Event()
    original = conversion.convert

    def slow(source: Path, directory: Path) -> None:
        calls.append(source)
        entered.set()
        assert proceed.wait(60)
        original(source, directory)

    monkeypatch.setattr(conversion, "convert", slow)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(converted, path)
        assert entered.wait(60)
        second = threads.submit(converted, path)
        proceed.set()
        assert first.result(60) == second.result(60)
    assert calls == [path]


def convert_with_bound(paths: tuple[str, str]) -> None:
    """Print by how much the resident memory grows while the second file is converted."""
    conversion.SHARD_BYTES = 2**20
    warm, path = paths
    converted(Path(warm))  # imports, and what libraries keep
    Path("/proc/self/clear_refs").write_text("5")  # the peak is the present
    before = peak_bytes()
    converted(Path(path))
    print(peak_bytes() - before)


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are those of Linux")
def test_a_conversion_holds_a_few_tensors_at_a_time(path: Path, tmp_path: Path):
    size = {"hidden_size": 512, "head_dim": 128, "intermediate_size": 1024}
    model = tiny_model("llama", **size, num_hidden_layers=12)
    total = sum(parameter.nbytes for parameter in model.parameters())
    largest = max(parameter.nbytes for parameter in model.parameters())
    large = write_gguf(tmp_path / "large.gguf", model, storage=gguf.GGMLQuantizationType.Q8_0)
    done = Program(convert_with_bound, (str(path), str(large))).ended()
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < total / 5
    assert total > 50 * largest  # it is bounded by these


def load(path: str) -> None:
    load_causal_lm(locate_model(path))


def test_processes_that_ask_at_once_convert_once(path: Path, cache: Path):
    processes = [Program(load, str(path)) for _ in range(2)]
    ended = [process.ended() for process in processes]
    assert [process.returncode for process in ended] == [0, 0]
    assert "".join(process.stderr for process in ended).count("\n") == 1
    assert len(folders(cache)) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_conversion_that_stops_half_way_leaves_nothing(
    path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
):
    def stop(_: Path, directory: Path) -> None:
        (directory / "config.json").write_text("{}")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(conversion, "convert", stop)
        with pytest.raises(error):
            converted(path)
    assert folders(cache) == []
    load_causal_lm(locate_model(str(path)))


def test_what_a_killed_conversion_left_is_removed_by_the_next(path: Path, cache: Path):
    (cache / "unfinished").mkdir(parents=True)
    (cache / "unfinished" / "config.json").write_text("{}")
    directory = converted(path)
    assert folders(cache) == [directory.name]
    load_causal_lm(locate_model(str(path)))


def test_a_cache_that_cannot_be_written_to_says_that_there_can_be_another(path: Path, cache: Path):
    cache.write_text("a file")
    message = refusal(path)
    assert f"cannot be converted into {cache}: " in message
    assert message.endswith("; SCHEDCC_CACHE can name another directory")


def test_a_full_disk_says_that_there_can_be_another_cache(
    path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: Path) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(conversion, "convert", full)
    assert "No space left on device (os error 28); SCHEDCC_CACHE can name" in refusal(path)
    assert folders(cache) == []


def test_a_tokenizer_beside_the_file_is_not_mistaken_for_its_own(path: Path):
    tiny_tokenizer().save_pretrained(path.parent)
    tokenizer = load_tokenizer(locate_model(str(path)))
    assert tokenizer.tokenize("12") == ["1", "2"]  # by the rule of the file, unlike the other


def test_a_file_that_is_not_gguf_is_refused_before_anything_is_made(tmp_path: Path, cache: Path):
    for content in (b"", b"GG", b"PK\3\4 something else"):
        (tmp_path / "m.gguf").write_bytes(content)
        assert refusal(tmp_path / "m.gguf").endswith(
            "is not a GGUF file: it does not start with GGUF"
        )
    assert not cache.exists()


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where weights would be read: what is refused has to be refused before."""

    def read(*_: object, **__: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(conversion, "dequantize", read)


@pytest.mark.usefixtures("no_weights")
def test_an_unsupported_architecture_is_refused(tmp_path: Path, gguf_bytes: bytes):
    (tmp_path / "m.gguf").write_bytes(gguf_bytes.replace(b"llama", b"mamba"))
    assert refusal(tmp_path / "m.gguf").endswith(
        "architecture 'mamba'; the supported architectures are llama, qwen2, qwen3"
    )


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        ({"rope.scaling.factor": 8.0}, "sets llama.rope.scaling.factor to 8.0, which is not supp"),
        ({"expert_count": 8}, "sets llama.expert_count to 8, which is not supported"),
        ({"attention.sliding_window": 32}, "sets llama.attention.sliding_window to 32, which is"),
        (
            {"attention.key_length": 16, "rope.dimension_count": 8},
            "sets llama.attention.key_length to 16, and would be converted to 8",
        ),
        (
            {"attention.value_length": 8},
            "sets llama.attention.value_length to 8, and would be converted to 16",
        ),
    ],
)
def test_keys_that_would_change_the_results_are_refused(
    tmp_path: Path, cache: Path, metadata: dict[str, object], problem: str
):
    extra = {f"llama.{key}": value for key, value in metadata.items()}
    write_gguf(tmp_path / "m.gguf", tiny_model("llama"), extra_metadata=extra)
    assert problem in refusal(tmp_path / "m.gguf")
    assert folders(cache) == []


@pytest.mark.usefixtures("no_weights")
def test_a_default_of_transformers_that_is_not_the_meaning_of_an_absent_key_is_refused(
    tmp_path: Path,
):
    # Qwen3's heads are 128 wide by default, and in GGUF as wide as their share of the embedding.
    content = write_gguf(tmp_path / "m.gguf", tiny_model("qwen3", **QWEN3)).read_bytes()
    (tmp_path / "m.gguf").write_bytes(content.replace(b"attention.key_len", b"attention.___ ___"))
    assert "sets qwen3.attention.key_length to 16, and would be converted to 128" in refusal(
        tmp_path / "m.gguf"
    )


@pytest.mark.usefixtures("no_weights")
def test_a_key_that_a_model_cannot_do_without_is_needed(tmp_path: Path, gguf_bytes: bytes):
    (tmp_path / "m.gguf").write_bytes(gguf_bytes.replace(b"feed_forward_l", b"feed_forward__"))
    assert "sets llama.feed_forward_length to None" in refusal(tmp_path / "m.gguf")


def test_keys_that_switch_a_feature_off_are_accepted(tmp_path: Path):
    extra = {"llama.rope.scaling.type": "none", "llama.expert_count": 0, "llama.rope.x": False}
    path = write_gguf(tmp_path / "m.gguf", tiny_model("llama"), extra_metadata=extra)
    assert locate_model(str(path)).num_blocks == 3


@pytest.mark.usefixtures("no_weights")
def test_tensors_without_a_place_in_the_model_are_refused(tmp_path: Path):
    extra = {"rope_freqs.weight": np.ones(8, dtype=np.float32)}
    path = write_gguf(tmp_path / "m.gguf", tiny_model("llama"), extra_tensors=extra)
    assert "holds the tensor rope_freqs.weight, which is not supported" in refusal(path)


@pytest.mark.usefixtures("no_weights")
def test_a_file_without_one_of_its_tensors_is_refused(tmp_path: Path):
    model = tiny_model("llama")
    model.config.num_hidden_layers = 4  # and there are 3
    path = write_gguf(tmp_path / "m.gguf", model)
    assert "lacks the tensor blk.3.attn_k.weight, so it is no whole model" in refusal(path)


@pytest.mark.usefixtures("no_weights")
def test_a_tensor_of_another_shape_is_refused(tmp_path: Path):
    extra = {"llama.vocab_size": 300}
    path = write_gguf(tmp_path / "m.gguf", tiny_model("llama"), extra_metadata=extra)
    assert "model.embed_tokens.weight is [261, 64], and [300, 64] is needed" in refusal(path)


@pytest.mark.usefixtures("no_weights")
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(4, 9000) | st.integers(1, 500).map(lambda missing: -missing))
@example(cut=4)
@example(cut=24)
@example(cut=-1)
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, gguf_bytes: bytes, cut: int):
    assert len(gguf_bytes) > 100_000
    (tmp_path / "m.gguf").write_bytes(gguf_bytes[:cut])
    assert "cannot be read, and may be damaged or cut off: " in refusal(tmp_path / "m.gguf")
    assert folders(Path(os.environ["SCHEDCC_CACHE"])) == []
