"""The modules that a function works with: a loss may be a module, or hold some."""

import dis
import functools
import types
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

DEPTH = 12
"""How many objects inside each other are looked into."""

FUNCTIONS = (types.FunctionType, functools.partial)

LONGEST = 1000
"""Collections of more elements are data."""


def modules_in(*values: Any) -> list[nn.Module]:
    """The modules that values are or hold, each once, none of which is a part of another.

    Looked into are partial functions, bound methods, the closure, the defaults and the global names
    of a function, lists, tuples, sets, dicts, and the attributes of objects.

    >>> norm = nn.BatchNorm1d(2)
    >>> modules_in(functools.partial(lambda scale, x: norm(x) * scale, 2.0)) == [norm]
    True
    """
    found: dict[int, nn.Module] = {}
    seen: set[int] = set()
    level = list(values)
    for _ in range(DEPTH):
        deeper: list[Any] = []
        for value in level:
            if id(value) in seen:
                continue
            seen.add(id(value))
            if isinstance(value, nn.Module):
                found[id(value)] = value
            else:
                deeper += _inside(value)
        level = deeper
    parts = {
        id(part) for module in found.values() for part in module.modules() if part is not module
    }
    return [module for module in found.values() if id(module) not in parts]


def _inside(value: Any) -> Iterable[Any]:
    """What a value holds, one level deep."""
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, types.MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, types.FunctionType):
        return _inside_function(value)
    if isinstance(value, Mapping):
        return list(value.values()) if len(value) <= LONGEST else []
    if isinstance(value, (list, tuple, set, frozenset)):
        return list(value) if len(value) <= LONGEST else []
    if isinstance(value, (type, types.ModuleType)):
        return []
    inside = list(getattr(value, "__dict__", {}).values())
    for kind in type(value).__mro__[:-1]:
        inside += [held for held in vars(kind).values() if isinstance(held, nn.Module)]
        slots = getattr(kind, "__slots__", ())
        names = (slots,) if isinstance(slots, str) else slots
        inside += [getattr(value, name, None) for name in names if not name.startswith("__")]
    wrapped = getattr(type(value), "__call__", None)  # noqa: B004
    return [*inside, wrapped] if isinstance(wrapped, types.FunctionType) else inside


def _inside_function(function: types.FunctionType) -> list[Any]:
    inside: list[Any] = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for cell in function.__closure__ or ():
        try:
            inside.append(cell.cell_contents)
        except ValueError:  # a name that has no value yet
            continue
    for name in _global_names(function.__code__):
        found = function.__globals__.get(name)
        inside.append(found)
        if isinstance(found, (types.ModuleType, type)):  # what is looked up in it
            held = (vars(found).get(attribute) for attribute in _attributes(function.__code__))
            inside += [value for value in held if isinstance(value, (nn.Module, FUNCTIONS))]
    inside.append(function.__dict__)  # of functions that wrap others
    return inside


@functools.lru_cache(maxsize=256)
def _attributes(code: types.CodeType) -> frozenset[str]:
    """The names that a function's code, and that of functions in it, looks up in objects."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _attributes(constant)
    return frozenset(names)


@functools.lru_cache(maxsize=256)
def _global_names(code: types.CodeType) -> frozenset[str]:
    """The names that a function's code, and that of functions in it, looks up in its module."""
    names = {step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _global_names(constant)
    return frozenset(names)
