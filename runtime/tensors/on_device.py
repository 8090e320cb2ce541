"""Whether an activation is where a transport moves it from, and where in it what is not."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch

from runtime.tensors.activation import ActivationError


def require_on(device: torch.device, activation: Any, tensors: Sequence[torch.Tensor]) -> None:
    """Refuse an activation that is not all where the transport moves it from.

    Args:
        device: That place; without an index, any device of its type.
        activation: What the tensors are in.
        tensors: Those of the activation, as `take_apart` gives them.

    Raises:
        ActivationError: naming the first tensor that is elsewhere, by its path.
    """
    for number, tensor in enumerate(tensors):
        if tensor.device.type != device.type or device.index not in (None, tensor.device.index):
            path = path_to(tensor, activation)
            which = f"tensor {number} of the activation" if path is None else f"activation{path}"
            raise ActivationError(
                f"{which}, {tensor.dtype} {list(tensor.shape)}, is on {tensor.device}, needed all "
                f"tensors between stages on {device}"
            )


def path_to(tensor: torch.Tensor, value: Any) -> str | None:
    """Where a tensor is in a value: keys, indices and attributes; `None` if it cannot be told.

    >>> x = torch.zeros(1)
    >>> path_to(x, {"hidden": [torch.zeros(1), x]}), path_to(x, x), path_to(x, 3)
    ("['hidden'][1]", '', None)
    """
    seen: set[int] = set()
    found: list[tuple[str, Any]] = [("", value)]
    while found:
        path, part = found.pop()
        if part is tensor:
            return path
        if id(part) not in seen and not isinstance(part, torch.Tensor):
            seen.add(id(part))  # a value may hold itself
            found += [(path + step, inner) for step, inner in _inside(part)]
    return None


def _inside(value: Any) -> Iterator[tuple[str, Any]]:
    """What is nested in a value, and the way there."""
    if isinstance(value, Mapping):
        yield from ((f"[{key!r}]", part) for key, part in value.items())
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        yield from ((f".{name}", getattr(value, name)) for name in value._fields)
    elif isinstance(value, (list, tuple)):
        yield from ((f"[{n}]", part) for n, part in enumerate(value))
    elif is_dataclass(value) and not isinstance(value, type):
        names = (f.name for f in fields(value) if hasattr(value, f.name))
        yield from ((f".{name}", getattr(value, name)) for name in names)
    elif not isinstance(value, (str, bytes, type)):
        yield from ((f".{name}", part) for name, part in getattr(value, "__dict__", {}).items())
