"""What users of `hf` say in `--model_args`, and what they are told where it cannot be."""

import inspect

import lm_eval
import pytest
import torch
from lm_eval.models.huggingface import HFLM

from runtime.language.harness import SchedccLM, register
from runtime.language.harness.arguments import (
    OF_HF,
    dtype_name,
    end_of_thoughts,
    most_rows,
    require_known,
    scorer_options,
)
from runtime.language.harness.base import PipelineLM
from runtime.language.harness.processes import ScoringProcesses
from runtime.language.models import ModelError
from tests.support.tiny_models import tiny_tokenizer

OURS = set(inspect.signature(PipelineLM).parameters) - {"other"}
THEIRS = {
    name: parameter.default
    for name, parameter in inspect.signature(HFLM.__init__).parameters.items()
    if name not in ("self", "kwargs")
}
NOWHERE = "no-such-directory"
"""A model that an argument is refused before: loading it would be another error."""


def test_each_parameter_of_hf_is_ours_or_known_and_its_default_asks_for_nothing():
    assert THEIRS.keys() <= OURS | OF_HF.keys()
    assert not OURS & OF_HF.keys()
    require_known({name: THEIRS[name] for name in OF_HF}, OURS)


def test_what_asks_for_nothing_is_taken(tiny_directory):
    SchedccLM(
        pretrained=tiny_directory,
        threads=1,
        trust_remote_code=None,
        revision="main",
        parallelize=False,
        peft=None,
        subfolder="",
        load_in_8bit=False,
        device_map=None,
        low_cpu_mem_usage=True,
        max_memory_per_gpu="10GiB",
    ).close()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"trust_remote_code": True}, "trust_remote_code is True, .* code .* is never run"),
        ({"trust_remote_code": "False"}, "trust_remote_code is 'False', which is not supported"),
        ({"revision": "v1"}, "revision is 'v1', .* nothing is downloaded"),
        ({"peft": "x"}, "peft is 'x', .* merge it into the model first"),
        ({"delta": "x"}, "delta is 'x', .* add them to the model first"),
        ({"parallelize": True}, "parallelize is True, .* use stages=S"),
        ({"device_map": "auto"}, "device_map is 'auto', .* use stages=S"),
        ({"tp_plan": "auto"}, "tp_plan is 'auto', .* use stages=S"),
        ({"load_in_4bit": True}, "load_in_4bit is True, .* GGUF"),
        ({"autogptq": True}, "autogptq is True, .* GGUF"),
        ({"gguf_file": "x.gguf"}, "gguf_file is 'x.gguf', .* the file itself as pretrained"),
        ({"backend": "seq2seq"}, "backend is 'seq2seq', .* needed backend=causal"),
        (
            {"stagse": 3},
            r"stagse is 3, .* \(did you mean stages\?\), needed one of add_bos_token, ",
        ),
        ({"revison": "main"}, r"did you mean revision\?"),
        ({"zzzz": "\x1b\n"}, r"^zzzz is '\\x1b\\n', but there is no such argument, needed one of"),
    ],
)
def test_what_cannot_be_is_refused_by_name_and_value_before_loading(given, said):
    with pytest.raises(ValueError, match=said):
        SchedccLM(pretrained=NOWHERE, **given)


def test_the_flag_of_the_command_line_for_code_is_refused():
    register()
    with pytest.raises(ValueError, match="trust_remote_code is True, which is not supported"):
        lm_eval.simple_evaluate(  # the command adds it to the arguments
            model="schedcc",
            model_args={"pretrained": NOWHERE, "trust_remote_code": True},
            tasks=["none"],
        )


@pytest.mark.parametrize(
    "name", ["stages", "replicas", "threads", "max_tokens", "max_batch_size", "max_length"]
)
@pytest.mark.parametrize("value", [0, -1, "5", 1.5, True])
def test_a_number_of_things_is_an_integer_of_at_least_one(name, value):
    with pytest.raises(ValueError, match=f"^{name} is {value!r}, needed an integer of at least 1"):
        SchedccLM(pretrained=NOWHERE, **{name: value})


@pytest.mark.parametrize("value", [0, -1, "0", "-5", "automatic", "auto:", 1.5, True, None])
def test_a_batch_has_a_size_or_is_automatic(value):
    with pytest.raises(ValueError, match=f"^batch_size is {value!r}, needed an integer"):
        SchedccLM(pretrained=NOWHERE, batch_size=value)


def test_the_command_line_hands_on_the_size_of_a_batch_as_a_text():
    assert most_rows("5", None) == most_rows(5, 7) == 5
    assert most_rows("auto", 7) == most_rows("auto:4", 7) == most_rows("auto:1.5", 7) == 7
    assert most_rows("auto", None) is None


@pytest.mark.parametrize("value", [0, -1.5, "5", float("nan"), float("inf"), True])
def test_a_timeout_is_a_time(value):
    with pytest.raises(ValueError, match=f"^timeout is {value!r}, needed a finite number"):
        SchedccLM(pretrained=NOWHERE, timeout=value)


@pytest.mark.parametrize("name", ["share_contexts", "add_bos_token", "enable_thinking"])
@pytest.mark.parametrize("value", ["False", 1])
def test_a_text_is_neither_true_nor_false(name, value):
    with pytest.raises(ValueError, match=f"^{name} is {value!r}, needed True or False"):
        SchedccLM(pretrained=NOWHERE, **{name: value})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"prefix_token_id": "<s>"}, "prefix_token_id is '<s>', needed an integer"),
        ({"think_end_token": 1.5}, r"think_end_token is 1\.5, needed a text or a token id"),
        ({"chat_template_args": "x"}, "chat_template_args is 'x', needed a dict"),
        ({"partition": 3}, "partition is 3, needed a name or a list"),
        ({"dtype": torch.int8}, "dtype is 'int8', needed one of"),
        ({"tokenizer": 3}, "tokenizer is of type int, needed the directory of one, or a tokenizer"),
        ({"pretrained": None}, "pretrained is missing, needed a model directory"),
        ({"pretrained": torch.nn.Identity()}, "pretrained is of type Identity, .*save_pretrained"),
    ],
)
def test_what_is_of_another_kind_is_refused_in_a_sentence(given, said):
    with pytest.raises(ValueError, match=said):
        SchedccLM(**{"pretrained": NOWHERE} | given)


def test_digits_are_a_token_id_where_thoughts_end():
    given = ("119", 119, "</think>", "²")
    assert [end_of_thoughts(one, needed=True) for one in given] == [119, 119, "</think>", "²"]
    assert end_of_thoughts(None, needed=None) is None


def test_dtypes_are_those_of_torch_or_their_names():
    assert dtype_name(torch.float32) == dtype_name("float32") == dtype_name("float") == "float32"
    assert dtype_name("auto") == "auto"
    assert dtype_name(None) is None
    settings = {"batch_size": 1, "max_batch_size": None, "share_contexts": False}
    settings |= {"partition": "balanced", "timeout": None}
    found = scorer_options(dtype=None, softmax_dtype=torch.float64, **settings)
    assert (found.dtype, found.softmax_dtype) == ("auto", "float64")
    found = scorer_options(dtype=torch.bfloat16, softmax_dtype=None, **settings)
    assert (found.dtype, found.softmax_dtype) == ("bfloat16", None)


def test_objects_that_hf_takes_are_taken(tiny_directory):
    tokenizer = tiny_tokenizer()
    model = SchedccLM(
        pretrained=tiny_directory,
        threads=1,
        dtype=torch.float32,
        tokenizer=tokenizer,
        think_end_token="119",
    )
    assert model.tokenizer is tokenizer
    assert model.think_end_token == 119
    assert model.get_model_info()["model_dtype"] == "torch.float32"
    model.close()


def test_processes_end_where_the_tokenizer_cannot_be_loaded(tiny_directory, monkeypatch):
    ended = []
    close = ScoringProcesses.close
    monkeypatch.setattr(
        ScoringProcesses, "close", lambda processes: (ended.append(processes), close(processes))
    )
    with pytest.raises(ModelError, match="the tokenizer of no-such-directory cannot be loaded"):
        SchedccLM(pretrained=tiny_directory, threads=1, tokenizer=NOWHERE)
    assert len(ended) == 1
