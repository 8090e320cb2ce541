"""Split a causal language model of transformers into the layers of a pipeline.

There is no table of families. The decoder layers are where transformers declares them to be
(`base_model_pp_plan`), or else the one list of as many modules as the configuration has layers.
What happens around them is the model's own forward, run on a frame (see `frame`), and whether that
is right is proved before (see `proof`).
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, NamedTuple

from torch import nn

from runtime.language.models.errors import ModelError
from runtime.language.models.files.shape import sequence_limits
from runtime.language.models.split.frame import frame_of
from runtime.language.models.split.layers import (
    BlockLayer,
    EmbeddingLayer,
    HeadLayer,
    Surroundings,
)
from runtime.language.models.split.proof import require_separable

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Blocks(NamedTuple):
    """The decoder layers of a model."""

    path: str
    """Where they are in it, such as `model.layers`."""
    modules: nn.ModuleList


def split_causal_lm(model: PreTrainedModel) -> list[nn.Module]:
    """Split a model into its embedding, its blocks and its head, in the order of their use.

    The layers hold the model's own parameters, in evaluation mode. One after the other they give
    the logits of `model(input_ids=ids, use_cache=False)`, bit for bit on the same number of
    threads. Where the head is tied to the embedding, both hold the same weight.

    Raises:
        ModelError: the model cannot be split; says why.
    """
    config = model.config
    name = config.name_or_path or type(model).__name__
    if getattr(config, "is_decoder", True) is False and hasattr(config, "type_vocab_size"):
        raise ModelError(
            f"{name} ({type(model).__name__}) is an encoder, whose tokens see those after them "
            "(is_decoder is false): it is no causal language model"
        )
    nn.Module.eval(model)
    _, blocks = decoder_layers(name, model)
    parts = require_separable(name, model, blocks)
    layers = len(blocks)
    shared = Surroundings(frame_of(model, blocks, ()), layers, parts.returned)
    limits = sequence_limits(name, config.get_text_config(decoder=True).to_dict())
    return [
        EmbeddingLayer(frame_of(model, blocks, parts.before), limits, parts.conditions),
        *(
            BlockLayer(block, index, copy.deepcopy(shared) if shared.remembers else shared)
            for index, block in enumerate(blocks)
        ),
        HeadLayer(frame_of(model, blocks, parts.after), parts.returned),
    ]


def decoder_layers(name: str, model: PreTrainedModel) -> Blocks:
    """Find the decoder layers of a model.

    Raises:
        ModelError: there is no list of as many modules as the configuration says, or several.
    """
    wanted: int = model.config.get_text_config(decoder=True).num_hidden_layers
    lists = [
        Blocks(path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == wanted
    ]
    # Lists within the first that is met, such as experts, are parts of decoder layers.
    outer = [one for one in lists if not any(one.path.startswith(f"{o.path}.") for o in lists)]
    planned = [
        one
        for one in outer
        if one.path.rpartition(".")[2] in (model.config.base_model_pp_plan or ())
    ]
    found = planned or outer
    if len(found) != 1:
        raise ModelError(
            f"{name} ({type(model).__name__}) cannot be split into its layers: it has {len(found)} "
            f"lists of {wanted} modules, and needed is one"
        )
    return found[0]


def names_in_model(model: PreTrainedModel, layers: list[nn.Module]) -> list[dict[str, str]]:
    """What the model calls the tensors of each layer that `split_causal_lm` made of it."""
    path = decoder_layers("the model", model).path
    names = []
    for index, layer in enumerate(layers):
        prefix, place = "lm.", ""
        if isinstance(layer, BlockLayer):
            prefix, place = "block.", f"{path}.{index - 1}."
        state = layer.state_dict()
        names.append({name: place + name.removeprefix(prefix) for name in state})
    return names
