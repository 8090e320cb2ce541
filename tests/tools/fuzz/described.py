"""Configurations and tokenizers of models: what transformers makes of them, or a sentence."""

import contextlib
import io
import json
from functools import partial
from pathlib import Path
from random import Random

from transformers import CONFIG_MAPPING

from runtime.language.models import load_tokenizer, locate_model
from runtime.language.models.described import describe
from runtime.language.models.encoder import ENCODERS
from runtime.language.models.errors import ModelError
from runtime.language.models.files.names import CONFIG
from runtime.language.models.files.shape import ModelFiles
from runtime.language.text.encoding import encode
from tests.support.families import FAMILIES
from tests.support.tiny_models import tiny_tokenizer
from tests.tools.fuzz.edits import Seed, edited_json
from tests.tools.fuzz.kinds import Kind, refused

CHOSEN = ("llama", "gpt2", "qwen2_moe", "gemma3_text")
KEYS = (
    *("model_type", "architectures", "num_hidden_layers", "n_layer", "hidden_size", "n_embd"),
    *("vocab_size", "max_position_embeddings", "n_positions", "rope_parameters", "rope_scaling"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "num_experts", "layer_types"),
    *("text_config", "auto_map", "quantization_config", "sliding_window", "torch_dtype"),
)
TOKENIZER_KEYS = (
    *("added_tokens", "added_tokens_decoder", "tokenizer_class", "auto_map", "model", "bos_token"),
    *("pre_tokenizer", "normalizer", "decoder", "post_processor", "version", "chat_template"),
)


def configs(folder: Path) -> Kind:
    """Configurations of several families."""
    seeds = []
    for family in CHOSEN:
        config = CONFIG_MAPPING[family](**FAMILIES[family])
        seeds.append(Seed(".json", config.to_json_string(use_diff=True).encode()))
    (folder / "model.safetensors").touch()
    return Kind(seeds, partial(edited_json, keys=KEYS), partial(_read_config, folder))


def _read_config(folder: Path, _: Seed, content: bytes, __: Random) -> str:
    (folder / CONFIG).write_bytes(content)
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            files = locate_model(str(folder))
            described = describe(files.directory, files.name)
        except ModelError as error:
            return refused(error)
    assert described.is_encoder == (files.model_type in ENCODERS)
    return "described"


def tokenizers(folder: Path) -> Kind:
    """Each file of a tokenizer, beside the others as they were."""
    tiny_tokenizer().save_pretrained(folder)
    added = {"<s>": 0, "</s>": 1}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    names = ("tokenizer.json", "tokenizer_config.json", "added_tokens.json")
    seeds = [Seed(f"-{name}", (folder / name).read_bytes()) for name in names]
    edit = partial(edited_json, keys=TOKENIZER_KEYS)
    files = ModelFiles("tiny", folder, "llama", 1, 1, 300, None)  # type: ignore[arg-type]
    return Kind(seeds, edit, partial(_read_tokenizer, files))


def _read_tokenizer(files: ModelFiles, seed: Seed, content: bytes, _: Random) -> str:
    file = files.directory / seed.suffix[1:]
    file.write_bytes(content)
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            encode(load_tokenizer(files), ["a text, 12 of them"])
        except ModelError as error:
            return refused(error)
        finally:
            file.write_bytes(seed.content)
    return "loaded"
