"""A model of transformers without its decoder layers: what its own forward does around them.

The forward of a causal language model is a loop over decoder layers, with something before (the
embeddings, masks, rotary embeddings) and something after (the norm, the head). A *frame* is a copy
of the model in which `Slot`s stand where the decoder layers were. Running it runs the code of the
model itself, and the slots hand what they are called with to whoever runs the frame: so the
arguments of every decoder layer are those that the model gives it, whatever its family.

Parameters are shared with the model, or absent: see `frame_of`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Arguments(NamedTuple):
    """What a decoder layer is called with beside the hidden state."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def values(self) -> list[Any]:
        """All of them."""
        return [*self.args, *self.kwargs.values()]


Visitor = Callable[[int, torch.Tensor, Arguments], Any]
"""`(index of the decoder layer, hidden state, arguments) -> what the layer is to return`.

The hidden state is [micro_batch, sequence, hidden]."""

_visitor: ContextVar[Visitor] = ContextVar("visitor")


class Slot(nn.Module):
    """Stands where a decoder layer was, with the plain attributes that forwards may ask for."""

    def __init__(self, block: nn.Module, index: int) -> None:
        """Stand for `block`, number `index`."""
        super().__init__()
        for name, value in vars(block).items():
            if not name.startswith("_") and isinstance(value, (bool, int, float, str)):
                setattr(self, name, value)
        self.slot_index = index

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the visitor of this run returns."""
        if args:
            hidden, *others = args
        else:
            hidden, others = kwargs.pop("hidden_states"), []
        return _visitor.get()(self.slot_index, hidden, Arguments(tuple(others), kwargs))


class Absent(nn.Module):
    """Stands where a module with weights was whose output nobody needs: zeros without memory."""

    def __init__(self, module: nn.Module) -> None:
        """Stand for `module`; an embedding adds a dimension, others keep the shape."""
        super().__init__()
        self.width = module.embedding_dim if isinstance(module, nn.Embedding) else None
        weight = next(module.parameters(recurse=False))
        self.dtype = weight.dtype

    def forward(self, inputs: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """Zeros in the shape of the output."""
        width = () if self.width is None else (self.width,)
        zero = torch.zeros((), dtype=self.dtype, device=inputs.device)
        return zero.expand(*inputs.shape, *width)


class _StopForward(Exception):  # noqa: N818 (nothing is wrong)
    """The rest of a forward is not needed."""


def frame_of(
    model: PreTrainedModel,
    blocks: nn.ModuleList,
    present: Collection[str] | None,
    parameters: Callable[[nn.Parameter], nn.Parameter] = lambda parameter: parameter,
) -> PreTrainedModel:
    """Copy a model without its decoder layers.

    Args:
        model: It stays as it is; in evaluation mode.
        blocks: Its decoder layers.
        present: Names of the modules outside the layers whose weights the frame has; others with
            weights are `Absent`. None: it has all.
        parameters: What takes the place of a parameter; default: the same parameter.
    """
    memo: dict[int, Any] = {id(model.config): model.config}
    for index, block in enumerate(blocks):
        memo[id(block)] = Slot(block, index)
    for name, module in weighted(model, blocks):
        if present is not None and name not in present:
            memo[id(module)] = Absent(module)
            continue
        for parameter in module.parameters(recurse=False):
            if id(parameter) not in memo:
                memo[id(parameter)] = parameters(parameter)
    return copy.deepcopy(model, memo)


def weighted(model: nn.Module, blocks: nn.ModuleList) -> Iterator[tuple[str, nn.Module]]:
    """The modules with weights of their own that are in none of the decoder layers, by name."""
    within = {id(module) for module in blocks.modules()}
    for name, module in model.named_modules():
        if id(module) not in within and any(True for _ in module.parameters(recurse=False)):
            yield name, module


def run(frame: nn.Module, visitor: Visitor, **inputs: Any) -> Any:
    """Run a frame; the slots return what `visitor` does.

    Returns:
        The output of the model, or None where the visitor raised `_StopForward`.
    """
    with _visited_by(visitor):
        try:
            return frame(**inputs, use_cache=False)
        except _StopForward:
            return None


def first_hidden(frame: nn.Module, **inputs: Any) -> torch.Tensor:
    """The hidden state that the first decoder layer is given."""
    found: list[torch.Tensor] = []

    def visit(_: int, hidden: torch.Tensor, __: Arguments) -> Any:
        found.append(hidden)
        raise _StopForward

    run(frame, visit, **inputs)
    return found[0]


def arguments_of_layers(
    frame: nn.Module, layers: int, returned: Wrapping, **inputs: Any
) -> list[Arguments]:
    """What each of the decoder layers is called with."""
    calls: list[Arguments] = []

    def visit(index: int, hidden: torch.Tensor, arguments: Arguments) -> Any:
        calls.append(arguments)
        if index == layers - 1:
            raise _StopForward
        return returned(hidden)

    run(frame, visit, **inputs)
    return calls


Wrapping = Callable[[torch.Tensor], Any]
"""A hidden state, in the form in which the model's decoder layers return it."""


def as_tensor(hidden: torch.Tensor) -> Any:
    """Decoder layers return a tensor."""
    return hidden


def as_tuple(hidden: torch.Tensor) -> Any:
    """Decoder layers return a tuple that begins with the hidden state."""
    return (hidden,)


def as_pair(hidden: torch.Tensor) -> Any:
    """Decoder layers return the hidden state and something else."""
    return hidden, None


@contextmanager
def _visited_by(visitor: Visitor) -> Iterator[None]:
    token = _visitor.set(visitor)
    try:
        yield
    finally:
        _visitor.reset(token)
