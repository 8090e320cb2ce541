"""No code of a model's directory is run, and nobody is asked whether it may."""

import ast
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from runtime.language.models import (
    ModelError,
    lazy_causal_lm,
    load_causal_lm,
    load_tokenizer,
    locate_model,
)
from tests.runtime.language.models.test_lazy import (
    assert_equal,
    logits_of_transformers,
    logits_over_stages,
)
from tests.runtime.language.models.test_locate import change_config
from tests.support.paths import ROOT
from tests.support.tiny_models import tiny_model, tiny_tokenizer

FLAG = "this code was run"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    place = tmp_path / "model"
    tiny_model("llama").save_pretrained(place)
    tiny_tokenizer().save_pretrained(place)
    (place / "own.py").write_text(f"raise SystemExit({FLAG!r})")
    return place


def name_own_tokenizer(directory: Path, code: object) -> None:
    path = directory / "tokenizer_config.json"
    changes = {"tokenizer_class": "Own", "auto_map": code}
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "code", [{"AutoTokenizer": ["own.Own", None]}, {"AutoTokenizer": "own.Own"}, ["own.Own", None]]
)
def test_a_tokenizer_that_is_code_is_refused_and_nothing_asked(
    directory: Path, capfd: pytest.CaptureFixture[str], code: object
):
    name_own_tokenizer(directory, code)
    capfd.readouterr()
    with pytest.raises(ModelError) as caught:
        load_tokenizer(locate_model(str(directory)))
    assert capfd.readouterr() == ("", "")
    assert str(caught.value) == (
        f"the tokenizer of {directory} is code of its own (own.Own, in auto_map of "
        "tokenizer_config.json), and code of model directories is not run; if tokenizer.json holds "
        "all of it, remove auto_map"
    )


def test_pipeval_does_not_take_yes_for_an_answer(directory: Path, tmp_path: Path):
    name_own_tokenizer(directory, {"AutoTokenizer": ["own.Own", None]})
    text = tmp_path / "text"
    text.write_text("abc " * 50)
    command = [sys.executable, "-c", "import runtime.cli; runtime.cli.main()"]
    command += ["--model", str(directory), "--text", str(text), "--json"]
    ended = subprocess.run(
        [*command, "--stages", "1", "--sequence-length", "16"],
        input="yes\n" * 100,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "code of model directories is not run" in ended.stderr
    assert FLAG not in ended.stderr


def test_a_model_whose_class_transformers_has_itself_is_that_class(directory: Path):
    expected = logits_of_transformers(directory, torch.float32)
    own = {"AutoConfig": "own.LlamaConfig", "AutoModelForCausalLM": "own.LlamaForCausalLM"}
    change_config(directory, auto_map=own)
    files = locate_model(str(directory))
    assert_equal(logits_over_stages(lazy_causal_lm(files), 2), expected)
    assert load_causal_lm(files).config.model_type == "llama"


def test_a_model_of_a_class_of_its_own_is_refused(directory: Path):
    change_config(directory, auto_map={"AutoModelForCausalLM": "own.SparseLlamaForCausalLM"})
    with pytest.raises(ModelError, match=r"needs code of its own \(own\.SparseLlama.* is not run"):
        lazy_causal_lm(locate_model(str(directory)))


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return SystemExit, (FLAG,)


def test_what_is_pickled_in_weights_is_not_run(directory: Path):
    (directory / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Bomb()}, directory / "pytorch_model.bin")
    for load in (lazy_causal_lm, load_causal_lm):
        with pytest.raises(ModelError, match=r"pytorch_model\.bin cannot be read"):
            load(locate_model(str(directory)))
    (directory / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ModelError, match="needed the zip file"):
        lazy_causal_lm(locate_model(str(directory)))


def says_that_code_is_not_run(call: ast.Call) -> bool:
    for keyword in call.keywords:
        if keyword.arg == "trust_remote_code":
            return isinstance(keyword.value, ast.Constant) and keyword.value.value is False
        if keyword.arg is None and ast.unparse(keyword.value) in ("LOCAL", "source"):
            return True
    first = call.args[0] if call.args else None
    return isinstance(first, ast.Constant) and first.value is None  # no directory


def test_every_call_of_transformers_says_that_code_is_not_run():
    calls = [
        (file.name, node)
        for file in (ROOT / "runtime").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("from_pretrained", "from_config")
    ]
    assert len(calls) >= 8
    assert [
        f"{file}: {ast.unparse(c)}" for file, c in calls if not says_that_code_is_not_run(c)
    ] == []
