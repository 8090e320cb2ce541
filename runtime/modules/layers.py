"""Layers: what a model is made of, built only where they run.

A model is a list. Its entries are modules, which exist on every process before they are divided, or
specifications, which are built on their own stage only, or plain functions::

    layers = [
        TiedLayerSpec("embedding", nn.Embedding, 50_000, 768),
        *[LayerSpec(Block, 768) for _ in range(24)],
        lambda hidden: hidden[:, -1:],
        nn.LayerNorm(768),
        TiedLayerSpec("embedding", nn.Embedding, 50_000, 768, forward_fn=logits),
    ]

A layer takes one argument, the output of the one before it (a tuple is one argument); the first may
take a micro-batch's inputs as keyword arguments.

The idea and the names are those of DeepSpeed (`deepspeed.runtime.pipe.module`).
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import nn

from runtime.device import random_state_kept
from runtime.failure.error_text import note

ForwardFunction = Callable[[Any, Any], Any]
"""`(module, input) -> output`: another way to use a tied layer's module."""


class LayerSpec:
    """A layer that is yet to be built: `factory(*args, **kwargs)`."""

    def __init__(self, factory: Callable[..., nn.Module], *args: Any, **kwargs: Any) -> None:
        """Remember how to build the layer.

        Args:
            factory: A subclass of `nn.Module`, or a function that returns a module.
            args: Its arguments.
            kwargs: Its keyword arguments.
        """
        if not callable(factory):
            raise TypeError(f"factory is {factory!r}, needed a class or function that makes layers")
        self.factory, self.args, self.kwargs = factory, args, kwargs

    @property
    def type_name(self) -> str:
        """The name of the factory: mostly that of the layer's class."""
        return name_of_function(self.factory)

    def build(self) -> nn.Module:
        """Make the layer, on torch's default device.

        Raises:
            TypeError: the factory returned no module.
        """
        layer = self.factory(*self.args, **self.kwargs)
        if not isinstance(layer, nn.Module):
            raise TypeError(f"{self!r} returned {layer!r}, needed an nn.Module")
        return layer

    def __repr__(self) -> str:
        arguments = [*map(repr, self.args), *(f"{k}={v!r}" for k, v in self.kwargs.items())]
        return f"{type(self).__name__}({', '.join([self.type_name, *arguments])})"


class TiedLayerSpec(LayerSpec):
    """A layer that has the weights of all layers with the same key.

    On one stage, they are one module. Stages that hold the same key get the weights of the first
    of them when the evaluator is made, bit for bit.
    """

    def __init__(
        self,
        key: Hashable,
        factory: Callable[..., nn.Module],
        *args: Any,
        forward_fn: ForwardFunction | None = None,
        **kwargs: Any,
    ) -> None:
        """Remember how to build the layer, and how to use it.

        Args:
            key: What layers that are tied have in common.
            factory: As of `LayerSpec`; the same for all layers with this key.
            args: Its arguments.
            forward_fn: `(module, input) -> output`; default: call the module.
            kwargs: Its keyword arguments.
        """
        super().__init__(factory, *args, **kwargs)
        self.key, self.forward_fn = key, forward_fn


Layer: TypeAlias = nn.Module | LayerSpec
"""An entry of a model's list of layers, once functions are modules."""
LayerLike: TypeAlias = Layer | Callable[..., Any]
"""An entry as a user gives it."""


class FunctionLayer(nn.Module):
    """A plain function as a layer: it has no weights, and takes what the layer before it gives."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Any, **named_inputs: Any) -> Any:
        """What the function makes of a micro-batch."""
        return self.function(*inputs, **named_inputs)

    def extra_repr(self) -> str:
        """The name of the function, for whoever prints the layers."""
        return name_of_function(self.function)


class LayersError(ValueError):
    """What was given as a model's layers is no list of layers."""


def require_layers(layers: Any) -> list[Layer]:
    """The entries of a list of layers, functions among them as modules.

    Raises:
        LayersError: it is a whole model, can be read only once, or holds something else.
    """
    name = type(layers).__name__
    if isinstance(layers, nn.Module) and not isinstance(layers, (nn.Sequential, nn.ModuleList)):
        raise LayersError(
            f"layers is a whole model of type {name}, needed a list of its layers or an "
            "nn.Sequential: how to cut a model into layers is not known from the outside"
        )
    if not isinstance(layers, (nn.Module, Sequence)) or isinstance(layers, str):
        raise LayersError(
            f"layers is of type {name}, needed a list of modules and LayerSpecs or an nn.Sequential"
        )
    entries: list[Any] = list(layers)  # type: ignore[arg-type]
    return [_as_layer(index, entry) for index, entry in enumerate(entries)]


def _as_layer(index: int, entry: Any) -> Layer:
    if isinstance(entry, (nn.Module, LayerSpec)):
        return entry
    if not callable(entry) or isinstance(entry, type):
        raise LayersError(
            f"layer {index} is {entry!r}, needed an nn.Module, a function of a micro-batch, or a "
            "LayerSpec (which wraps a class or a function that makes the layer)"
        )
    owner = getattr(entry, "__self__", None)
    if isinstance(owner, nn.Module):
        raise LayersError(
            f"layer {index} is a method of a {type(owner).__name__}, whose weights a function "
            "would hide: needed the module"
        )
    return FunctionLayer(entry)


def name_of_function(function: Callable[..., Any]) -> str:
    """What a function, or another callable, is called."""
    while isinstance(function, partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)


def type_name(layer: Layer) -> str:
    """The name of a layer's class, or of the function that makes it or that it is."""
    if isinstance(layer, FunctionLayer):
        return name_of_function(layer.function)
    return layer.type_name if isinstance(layer, LayerSpec) else type(layer).__name__


class TiedLayer(nn.Module):
    """A tied layer's module, used through its `forward_fn`."""

    def __init__(self, module: nn.Module, forward_fn: ForwardFunction) -> None:
        super().__init__()
        self.module, self.forward_fn = module, forward_fn

    def forward(self, inputs: Any) -> Any:
        """What `forward_fn` makes of the module and its input."""
        return self.forward_fn(self.module, inputs)


class StageModule(nn.Sequential):
    """The layers of one stage, one after the other.

    They keep the names that they have in the whole model (their index in the list, unless an
    `nn.Sequential` names them otherwise), so that the stages' state dicts together are that of the
    unsplit `nn.Sequential`.
    """

    def __init__(self, layers: dict[str, nn.Module], *, keyword_inputs: bool = False) -> None:
        """Chain the layers, in order.

        Args:
            layers: By name.
            keyword_inputs: Whether the first takes a mapping as its keyword arguments.
        """
        super().__init__(OrderedDict(layers))
        self.keyword_inputs = keyword_inputs

    def forward(self, inputs: Any) -> Any:
        """Apply the layers to a micro-batch's inputs, or to what the stage before sent."""
        first, *others = self
        value = first(**inputs) if self.keyword_inputs else first(inputs)
        for layer in others:
            value = layer(value)
        return value


def build_stage(
    layers: nn.Sequential | Sequence[Layer],
    first: int,
    stop: int,
    *,
    keyword_inputs: bool = False,
    tied: dict[Hashable, nn.Module] | None = None,
) -> StageModule:
    """Build the layers from `first` up to but not including `stop`, and no others.

    Args:
        layers: All layers.
        first: Index of the first one.
        stop: Index behind the last one.
        keyword_inputs: Whether the first layer of the model takes keyword arguments.
        tied: Modules by key that other stages in this process have built; added to.

    Raises:
        Exception: what a layer's factory raised, with a note on which layer it was.
    """
    entries = list(layers)
    names = list(layers._modules) if isinstance(layers, nn.Sequential) else None
    tied = {} if tied is None else tied
    # On one process they are not built again, and so draw no random numbers.
    before = {entry.key for entry in entries[:first] if isinstance(entry, TiedLayerSpec)}
    built: dict[str, nn.Module] = {}
    for index in range(first, stop):
        entry = entries[index]
        again = isinstance(entry, TiedLayerSpec) and entry.key in before
        try:
            with random_state_kept(_current_device()) if again else nullcontext():
                layer = _build(entry, tied)
        except Exception as error:
            note(error, f"when layer {index} was built: {entry!r}")
            raise
        built[str(index) if names is None else names[index]] = layer
    return StageModule(built, keyword_inputs=keyword_inputs and first == 0)


def _build(layer: Layer, tied: dict[Hashable, nn.Module]) -> nn.Module:
    if isinstance(layer, TiedLayerSpec):
        if layer.key not in tied:
            tied[layer.key] = layer.build()
        module = tied[layer.key]
        return module if layer.forward_fn is None else TiedLayer(module, layer.forward_fn)
    return layer.build() if isinstance(layer, LayerSpec) else layer


def _current_device() -> torch.device:
    """The device whose generator factories may draw from, beside that of the CPU."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
