"""Shapes that depend on values: noticing the operators of torch whose results do.

torch marks its operators: the shape of what `nonzero` or a selection by a mask returns depends on
values, and `item()` hands a value to Python, which may slice by it
(https://docs.pytorch.org/docs/stable/torch.compiler_dynamic_shapes.html). A layer that uses one may
return another shape for the next micro-batch that looks alike.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

_TAGS = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output}
_INDEX = torch.ops.aten.index.Tensor
_MASKS = (torch.bool, torch.uint8)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operator that is executed."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to skip it, torch would import its compiler: seconds, and megabytes

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.noticed = False

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if not self.noticed and not _TAGS.isdisjoint(func.tags):
            # Selections by numbers have the shape of the numbers.
            by_mask = func is not _INDEX or any(
                i is not None and i.dtype in _MASKS for i in args[1]
            )
            self.noticed = by_mask
        result = func(*args, **(kwargs or {}))
        # Encoders of torch leave padding out in nested tensors, whose sizes come from the mask.
        self.noticed |= isinstance(result, torch.Tensor) and result.is_nested
        return result


@contextmanager
def noticing(module: nn.Module) -> Iterator[_Watch]:
    """Inside, notice operators whose results have shapes that depend on values.

    Compiled modules are not looked into: torch specialises them to shapes itself, and would
    execute other code while it is watched.
    """
    watch = _Watch()
    if any(hasattr(part, "_orig_mod") for part in module.modules()):
        yield watch
        return
    with watch:
        yield watch
