"""Which settings of a generation are taken: those that leave one greedy beam as it is."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from runtime.language.harness.generation import GenerationRequest, generation_request

NOTHING = {
    "num_return_sequences": 1,
    "length_penalty": 2.0,
    "early_stopping": True,
    "renormalize_logits": True,
    "num_beams": 1,
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
    "low_memory": True,
    "use_cache": False,
    "cache_implementation": "static",
    "prefill_chunk_size": 2,
    "prompt_lookup_num_tokens": 2,
    "remove_invalid_values": True,
    "output_scores": True,
    "epsilon_cutoff": 0.1,
    "eta_cutoff": 0.1,
    "top_h": 0.5,
    "pad_token_id": 3,
    "token_healing": False,
    "stop_strings": None,
}
"""Settings, and values with which they change nothing."""


def wanted(**settings):
    return generation_request(settings, end_of_text="</s>", max_gen_toks=5)


def test_what_changes_nothing_for_one_greedy_beam_is_taken():
    assert wanted(max_gen_toks=4, **NOTHING) == GenerationRequest(("</s>",), 4)


def test_transformers_generates_the_same_with_what_changes_nothing(tiny_directory):
    model = AutoModelForCausalLM.from_pretrained(tiny_directory).eval()
    context, plain = torch.tensor([[5, 6, 7]]), {"max_new_tokens": 8, "do_sample": False}
    expected = model.generate(context, **plain).tolist()
    for name, value in NOTHING.items():
        assert model.generate(context, **plain, **{name: value}).tolist() == expected, name


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"do_sample": True, "temperature": 0.7}, "ask for sampling"),
        ({"temperature": 0.7}, "ask for sampling"),
        ({"num_beams": 4}, "sets num_beams to 4"),
        ({"repetition_penalty": 1.2}, "sets repetition_penalty to 1.2"),
        ({"num_return_sequences": 2}, "sets num_return_sequences to 2"),
        ({"num_beam_groups": 2}, "sets num_beam_groups to 2"),
        ({"stop_strings": ["x"]}, "sets stop_strings to "),
        ({"max_time": 1.0}, "sets max_time to "),
        ({"token_healing": True}, "sets token_healing to True"),
        ({"cache_implementation": "quantized"}, "sets cache_implementation to 'quantized'"),
        ({"eos_token_id": 3}, "sets eos_token_id to 3"),
        ({"max_gen_toks": 0}, "max_gen_toks is 0, needed at least 1"),
        ({"max_new_tokens": -3}, "max_gen_toks is -3, needed at least 1"),
        ({"max_gen_toks": "many"}, "'max_gen_toks': 'many'}, which cannot be read"),
        ({"temperature": None}, "'temperature': None}, which cannot be read"),
        ({"colour": "red"}, "sets colour to 'red', which is not supported"),
    ],
)
def test_only_greedy_generation_is_done(settings, said):
    with pytest.raises(ValueError, match=said):
        generation_request(settings, end_of_text="</s>", max_gen_toks=5)
