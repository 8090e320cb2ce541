"""A proof, at load, that a model is a chain of decoder layers that can be cut anywhere.

The model's frame runs on a few tokens while `Dataflow` follows what each tensor is computed from.
The model can be split where

1. every decoder layer is called once, in order, with what the one before it returned;
2. what else a layer is given depends on the shapes, the mask and the positions, and not on tokens,
   hidden states or weights;
3. the logits depend on the last layer's output alone, and not on the mask or the positions either;
4. no token and no element of a hidden state decides which operations run;
5. frames without weights give all layers the arguments that the whole model gives them.

Decoder layers do not run for it, so it takes no memory for their weights and some milliseconds.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.utils import _pytree as pytree

from runtime.language.models.errors import ModelError
from runtime.language.models.split.dataflow import Dataflow
from runtime.language.models.split.frame import (
    Arguments,
    Wrapping,
    arguments_of_layers,
    as_pair,
    as_tensor,
    as_tuple,
    frame_of,
    run,
)
from schedcc.io.plain_text import one_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_IDS = torch.tensor([[3, 1, 2, 0, 1], [2, 2, 0, 1, 3]])
_MASK = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
_POSITIONS = torch.tensor([[0, 0, 0, 1, 2], [0, 1, 2, 3, 4]])
_CONDITIONS: tuple[dict[str, torch.Tensor], ...] = (
    {},
    {"attention_mask": _MASK},
    {"position_ids": _POSITIONS},
    {"attention_mask": _MASK, "position_ids": _POSITIONS},
)
_WORDS = 8
_WARNING = "warn_if_padding_and_no_attention_mask"


@dataclass
class Separation:
    """How a model separates into embedding, decoder layers and head."""

    before: set[str] = field(default_factory=set)
    """Names of the modules with weights that are called before the decoder layers."""
    after: set[str] = field(default_factory=set)
    """Names of those that are called after them."""
    returned: Wrapping = as_tensor
    """What the decoder layers return."""
    conditions: frozenset[str] = frozenset()
    """Which of `attention_mask` and `position_ids` the model takes beside its tokens."""


class _RefusedError(Exception):
    """Why a model cannot be split: the end of a sentence that begins with its name."""

    def __init__(self, reason: str, reached: int) -> None:
        """Tell how many layers were called before."""
        super().__init__(reason)
        self.reached = reached


@torch.no_grad()
def require_separable(name: str, model: PreTrainedModel, blocks: nn.ModuleList) -> Separation:
    """Prove that a model can be split, or refuse it.

    Args:
        name: What messages call the model.
        model: Its parameters may be on the meta device.
        blocks: Its decoder layers.

    Raises:
        ModelError: it cannot; says why.
    """
    frame = _frame_in_memory(model, blocks)
    refusals: list[_RefusedError] = []
    for returned in (as_tensor, as_tuple, as_pair):
        try:
            return _separation(model, frame, blocks, returned)
        except _RefusedError as refused:
            refusals.append(refused)
        except Exception as error:  # what models raise when their layers return something else
            reason = f"its forward does not run without them ({one_line(error)})"
            refusals.append(_RefusedError(reason, 0))
    reason = str(max(refusals, key=lambda refused: refused.reached))
    raise ModelError(f"{name} ({type(model).__name__}) cannot be split into its layers: {reason}")


def _frame_in_memory(model: PreTrainedModel, blocks: nn.ModuleList) -> PreTrainedModel:
    """A frame with all weights, in memory: zeros where the model has none."""
    frame = frame_of(model, blocks, None, _in_memory)
    of_model, of_frame = (cast(Any, lm).get_output_embeddings for lm in (model, frame))
    head = of_frame()
    if isinstance(head, nn.Linear) and of_model().weight.is_meta:
        for name, parameter in list(head.named_parameters(recurse=False)):
            # A product with all words of a large vocabulary would take most of the time.
            setattr(head, name, nn.Parameter(parameter[:_WORDS].clone(), requires_grad=False))
    for module in frame.modules():
        if hasattr(module, _WARNING):  # it looks at tokens, to warn and for nothing else
            setattr(module, _WARNING, lambda *_: None)
    return frame


def _in_memory(parameter: nn.Parameter) -> nn.Parameter:
    # Zeros that nobody writes to take no memory, whatever the size of the vocabulary.
    if not parameter.is_meta:
        return parameter
    return nn.Parameter(torch.zeros(parameter.shape, dtype=parameter.dtype), requires_grad=False)


def _separation(
    model: PreTrainedModel, frame: PreTrainedModel, blocks: nn.ModuleList, returned: Wrapping
) -> Separation:
    separation = Separation(returned=returned)
    accepted: set[str] = set()
    bare = frame_of(model, blocks, ())
    declared = inspect.signature(model.forward).parameters
    for conditions in _CONDITIONS:
        if not conditions.keys() <= declared.keys():
            continue
        hidden, calls = _traced(frame, len(blocks), conditions, separation)
        other = {"inputs_embeds": torch.ones_like(hidden), **conditions}
        again = arguments_of_layers(bare, len(blocks), returned, **other)
        if len(again) != len(calls) or not all(map(_same, calls, again)):
            reason = "what its layers are given is another thing without its embeddings"
            raise _RefusedError(reason, len(calls))
        accepted |= conditions.keys()
    separation.conditions = frozenset(accepted)
    return separation


def _traced(
    frame: PreTrainedModel, layers: int, conditions: dict[str, torch.Tensor], found: Separation
) -> tuple[torch.Tensor, list[Arguments]]:
    """Run the frame on a few tokens, and see that points 1 to 4 hold.

    Returns:
        The first hidden state, and what each layer is given beside it.
    """
    calls: list[Arguments] = []
    chain: list[torch.Tensor] = []
    flow = Dataflow()

    def visit(index: int, hidden: torch.Tensor, arguments: Arguments) -> Any:
        if index != len(calls) or (calls and hidden is not chain[-1]):
            reason = f"layer {index} is not called with what the one before it returned"
            raise _RefusedError(reason, len(calls))
        _require_plain(index, arguments)
        if others := flow.marks(arguments.values) - conditions.keys():
            reason = f"layer {index} is also given what is computed from {_named(others)}"
            raise _RefusedError(reason, len(calls))
        calls.append(arguments)
        chain.extend((hidden, torch.zeros_like(hidden)))
        flow.mark(chain[-1], _layer(index))
        return found.returned(chain[-1])

    ids = _IDS.clone()
    with _uses(frame, calls, found), flow:
        flow.mark(ids, "tokens")
        for name, tensor in conditions.items():
            flow.mark(tensor, name)
        for name, parameter in frame.named_parameters():
            flow.mark(parameter, f"weight {name}")
        logits = run(frame, visit, input_ids=ids, **conditions).logits
        marks = {mark for mark in flow.marks(logits) if not mark.startswith("weight ")}
    if len(calls) != layers:
        raise _RefusedError(f"its forward calls {len(calls)} of its {layers} layers", len(calls))
    if marks != {_layer(layers - 1)}:
        raise _RefusedError(f"its logits are computed from {_named(marks)}", layers)
    if decisions := flow.decisions - conditions.keys():
        raise _RefusedError(f"which operations it runs depends on {_named(decisions)}", layers)
    return chain[0], calls


@contextmanager
def _uses(frame: nn.Module, calls: list[Arguments], found: Separation) -> Iterator[None]:
    """Note which modules with weights are called before the decoder layers, and which after."""
    hooks = []
    for name, module in frame.named_modules():
        if any(True for _ in module.parameters(recurse=False)):

            def note(*_: Any, name: str = name) -> None:
                (found.after if calls else found.before).add(name)

            hooks.append(module.register_forward_pre_hook(note))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _layer(index: int) -> str:
    return f"the output of layer {index}"


def _named(marks: frozenset[str] | set[str]) -> str:
    return ", ".join(sorted(marks)[:3]) or "no layer"


def _require_plain(index: int, arguments: Arguments) -> None:
    """Refuse objects through which layers could hand values to each other."""
    for value in pytree.tree_leaves(arguments.values, is_leaf=_is_mutable):
        if not isinstance(value, _PLAIN):
            raise _RefusedError(
                f"layer {index} is given a {type(value).__name__}, through which layers may hand "
                "each other values",
                index,
            )


_PLAIN = (torch.Tensor, torch.dtype, torch.device, bool, int, float, str, type(None))


def _is_mutable(value: Any) -> bool:
    return isinstance(value, (dict, set)) or (isinstance(value, list) and not value)


def _same(some: Arguments, other: Arguments) -> bool:
    """Whether arguments are the same, bit for bit."""
    ours, structure = pytree.tree_flatten((some.args, dict(some.kwargs)))
    theirs, other_structure = pytree.tree_flatten((other.args, dict(other.kwargs)))
    return structure == other_structure and all(
        (a.dtype == b.dtype and torch.equal(a, b)) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(ours, theirs, strict=True)
    )
