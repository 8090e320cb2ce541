"""Undo: put back what a piece of code changed in modules, bit for bit.

Adapters that merge their weights when `eval()` is called take them apart again in `train()`, but
adding and subtracting leaves other last bits. So what such methods change is noted: attributes by
name, the entries of lists and dicts among them, and tensors by a copy of those that are written to,
made just before. What is not written to costs no memory.
"""

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import nn

from runtime.modules.operations import Operations

_REGISTERS = {"_parameters", "_buffers", "_modules"}
"""Where a module has its tensors and its parts."""

Contents = dict[Any, Any] | list[Any] | set[Any] | None


class Changes:
    """What was done to modules inside `noted`, and how to undo it."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        """Nothing has been done yet to `modules`; their parts are not included."""
        self._modules = list(modules)
        self._attributes: list[tuple[nn.Module, str, bool, Any, Contents]] = []
        self._memory: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._copies: list[tuple[torch.Tensor, torch.Tensor]] = []

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Inside, changes are noted, also where an exception ends it."""
        if not self._modules:
            yield
            return
        before = [
            {name: (value, _contents(value)) for name, value in vars(module).items()}
            for module in self._modules
        ]
        tensors = list(chain.from_iterable(map(_tensors, self._modules)))
        aliases = [tensor.detach() for tensor in tensors]
        copies = _CopyBeforeWrite(aliases)
        try:
            with copies:
                yield
        finally:
            for module, attributes in zip(self._modules, before, strict=True):
                self._note(module, attributes)
            for tensor, alias in zip(tensors, aliases, strict=True):
                if tensor.data_ptr() != alias.data_ptr():
                    self._memory.append((tensor, alias))
            self._copies = list(copies.made.values())

    @property
    def attributes(self) -> set[tuple[nn.Module, str]]:
        """The attributes that were changed, other than tensors and parts of modules."""
        return {(module, name) for module, name, *_ in self._attributes if name not in _REGISTERS}

    def undo(self, keep: Container[tuple[nn.Module, str]] = ()) -> None:
        """Put everything back that has been noted, but for the attributes in `keep`."""
        for module, name, there, value, contents in self._attributes:
            if (module, name) in keep:
                continue
            if there:
                vars(module)[name] = value
                _put_back(value, contents)
            else:
                vars(module).pop(name, None)
        for tensor, memory in self._memory:
            tensor.data = memory
        for alias, copy in self._copies:
            alias.data.copy_(copy)  # of which graphs that are yet to go backward need not know

    def _note(self, module: nn.Module, before: Mapping[str, tuple[Any, Contents]]) -> None:
        now = vars(module)
        for name in {**before, **now}:
            value, contents = before.get(name, (None, None))
            there = name in before
            same = there and name in now and now[name] is value
            if not same or not _same(contents, _contents(value)):
                self._attributes.append((module, name, there, value, contents))


class _CopyBeforeWrite(Operations):  # type: ignore[no-untyped-call]
    """Copies tensors just before an operation writes to their memory."""

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self._watched: dict[int, list[torch.Tensor]] = {}
        for tensor in tensors:
            self._watched.setdefault(_storage(tensor), []).append(tensor)
        self._watched.pop(0, None)  # what has no memory of its own
        self.made: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def before(self, operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Copy what the operation writes to."""
        schema = getattr(operation, "_schema", None)
        if schema is not None and schema.is_mutable:
            for number, argument in enumerate(schema.arguments):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    value = args[number] if number < len(args) else kwargs.get(argument.name)
                    self._keep(value if isinstance(value, (list, tuple)) else [value])

    def _keep(self, written: Iterable[Any]) -> None:
        for tensor in written:
            if isinstance(tensor, torch.Tensor):
                for alias in self._watched.get(_storage(tensor), []):
                    if id(alias) not in self.made:
                        self.made[id(alias)] = (alias, alias.clone())


def _tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    for tensor in (*module._parameters.values(), *module._buffers.values()):
        if tensor is not None and _storage(tensor):
            yield tensor


def _storage(tensor: torch.Tensor) -> int:
    """The address of a tensor's memory; 0 if it has none of its own."""
    if tensor.layout is not torch.strided or tensor.is_meta:
        return 0
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # tensors made of others
        return 0


def _contents(value: Any) -> Contents:
    """A shallow copy of what can be changed in place."""
    if isinstance(value, dict):
        return dict(value)
    if isinstance(value, list):
        return list(value)
    return set(value) if isinstance(value, set) else None


def _same(before: Contents, now: Contents) -> bool:
    if isinstance(before, dict) and isinstance(now, dict):
        return list(before) == list(now) and all(before[key] is now[key] for key in before)
    if isinstance(before, list) and isinstance(now, list):
        return len(before) == len(now) and all(a is b for a, b in zip(before, now, strict=True))
    return before == now


def _put_back(value: Any, contents: Contents) -> None:
    if isinstance(contents, dict):
        value.clear()
        value.update(contents)
    elif isinstance(contents, list):
        value[:] = contents
    elif isinstance(contents, set):
        value.clear()
        value.update(contents)
