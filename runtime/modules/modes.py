"""Modes: modules are evaluated in evaluation mode, and are afterwards as they were before.

A change of mode is more than a flag: modules override `train` and `eval` to merge adapters, to keep
parts frozen and so on. So these methods are called, once each way, and only where something is in
training mode; what was in evaluation mode is not touched. What they changed in weights is put back
bit for bit, see `runtime.modules.undo`, and so is what `eval` changed in anything else and `train`
did not care for. What the evaluation itself changed (a counter, a cache) stays.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from runtime.modules.undo import Changes


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients inside; afterwards everything as it was.

    Args:
        modules: May have parts in common.
    """
    before = {part: part.training for module in modules for part in module.modules()}
    if not any(before.values()):
        with torch.no_grad():
            yield
        return
    entered, left = Changes(_switching(before)), Changes(_switching(before))
    try:
        with entered.noted():
            for module in modules:
                _enter(module, top=True)
        with torch.no_grad():
            yield
    finally:
        try:
            with left.noted():
                for module in reversed(modules):
                    _leave(module, before)
        finally:
            both = entered.attributes & left.attributes  # which the module has seen to itself
            left.undo(keep=both)
            entered.undo(keep=both)
            for part, mode in before.items():
                part.training = mode


def _enter(module: nn.Module, *, top: bool = False) -> None:
    modes = {part.training for part in module.modules()}
    if True not in modes:
        return
    if modes == {True} or (module.training and _overrides(module)):
        module.eval() if top else module.train(False)
        return
    module.training = False
    for child in module.children():
        _enter(child)


def _leave(module: nn.Module, before: Mapping[nn.Module, bool]) -> None:
    wanted = {part: before.get(part, part.training) for part in module.modules()}
    if all(part.training == mode for part, mode in wanted.items()):
        return
    mode = wanted[module]
    if _overrides(module) or set(wanted.values()) == {mode}:
        module.train(mode)
    else:
        module.training = mode
    for child in module.children():
        _leave(child, before)


def _switching(parts: Mapping[nn.Module, bool]) -> list[nn.Module]:
    """The modules that a change of mode may do more to than set a flag."""
    found: dict[nn.Module, None] = {}
    for module in parts:
        if _overrides(module):
            found.update(dict.fromkeys(module.modules()))
    return list(found)


def _overrides(module: nn.Module) -> bool:
    kind = type(module)
    overridden = kind.train is not nn.Module.train or kind.eval is not nn.Module.eval
    return overridden or "train" in vars(module) or "eval" in vars(module)
