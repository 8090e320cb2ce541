"""One tensor of a safetensors file at a time.

A mapped file counts as resident memory for as long as it is open, so every tensor is read through
a mapping of its own: then no more than the tensor being copied is resident.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from runtime.checkpoint.errors import CheckpointError
from runtime.checkpoint.tensors import Spec
from schedcc.io.plain_text import one_line

_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}


def read_specs(path: Path) -> dict[str, Spec]:
    """The tensors of a file, from its header alone.

    Raises:
        CheckpointError: the file is missing, cut off, or its header is damaged.
    """
    specs = {}
    with _opened(path) as file:
        for name in file.keys():  # noqa: SIM118 (it is no mapping)
            part = file.get_slice(name)
            dtype = _DTYPES.get(part.get_dtype())
            if dtype is None:
                raise CheckpointError(
                    f"{path} holds tensor {name} as {part.get_dtype()}, which is not supported"
                )
            specs[name] = Spec(dtype, tuple(part.get_shape()))
    return specs


def read_tensor(path: Path, name: str) -> torch.Tensor:
    """One tensor, as a view of the file that lives as long as the tensor.

    Raises:
        CheckpointError: the file is missing, cut off or damaged, or does not hold the tensor.
    """
    with _opened(path) as file:
        try:
            tensor: torch.Tensor = file.get_tensor(name)
        except SafetensorError as error:
            raise CheckpointError(
                f"{path} does not give tensor {name}: {one_line(error)}"
            ) from error
    return tensor


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged or cut off: {one_line(error)}") from error
