"""Fingerprints of micro-batches: do the first and the last stage read the same ones?

Inputs and labels are read by different processes. If their loaders shuffle differently, nothing
hangs and nothing fails: the loss is just wrong. So stages that read micro-batches compare a digest
of each pair, of inputs and of labels; where a stage's data holds `None` for what it does not need,
the other stage's word is taken.

A digest takes structure, shapes and dtypes, and a sample of each tensor's elements: cheap for any
size, and enough to tell apart data that was not made to deceive.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import numpy as np
import torch

from runtime.failure.errors import AgreedError
from runtime.tensors.nested import Flat

SAMPLE = 256
"""Elements of a tensor that are looked at."""

_GOLDEN = 0.6180339887498949
"""Multiples of it, modulo 1, are spread evenly and repeat in no row or column of a tensor."""

_SOON_READ = {torch.float32, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool}
"""What most data is made of, and numpy knows: it does with fewer and shorter calls."""

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

Digests = tuple[str | None, str | None]
"""Of a micro-batch's inputs and labels."""


class DifferentDataError(AgreedError, ValueError):
    """Stages read different micro-batches."""


def fingerprint(value: Any, flat: Flat | None = None) -> str | None:
    """A digest of inputs or labels; `None` of `None`.

    Args:
        value: Inputs or labels.
        flat: The same, if its leaves are known.

    >>> a, b = torch.arange(6).reshape(2, 3), torch.arange(6).reshape(3, 2)
    >>> fingerprint(a) == fingerprint(a.clone()), fingerprint(a) == fingerprint(b)
    (True, False)
    """
    if value is None:
        return None
    if isinstance(value, torch.Tensor):  # nearly always, and soon told
        leaves, structure = [value], ""
    else:
        flat = flat or Flat(value)
        leaves, structure = flat.leaves, flat.structure
    digest = blake2b(structure.encode(), digest_size=8)
    for leaf in leaves:
        if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biufc" and leaf.dtype.isnative:
            leaf = torch.from_numpy(np.ascontiguousarray(leaf))
        if isinstance(leaf, torch.Tensor):
            digest.update(_look(leaf.dtype, None if leaf.is_nested else leaf.shape))
            digest.update(_sample(leaf))
        elif isinstance(leaf, np.ndarray):
            digest.update(f"{leaf.dtype} {leaf.shape} {leaf.ravel()[:SAMPLE].tolist()!r} ".encode())
        elif isinstance(leaf, (bool, int, float, str, bytes)):
            digest.update(f"{leaf!r} ".encode())
        else:  # its text may hold its address
            digest.update(f"{type(leaf).__qualname__} ".encode())
    return digest.hexdigest()


def require_same_data(
    by_reader: Sequence[Sequence[Digests]], before: int = 0, unit: str = "stage"
) -> None:
    """Compare what all ranks have fetched so far.

    Args:
        by_reader: Digests by rank; an empty sequence says nothing.
        before: Micro-batches that came before these.
        unit: What messages count: stages, where every rank holds one, or ranks.

    Raises:
        DifferentDataError: two of them read different micro-batches; the first one is named.
    """
    readers = {reader: digests for reader, digests in enumerate(by_reader) if digests}
    for micro_batch, pairs in enumerate(zip(*readers.values(), strict=False), start=before):
        error = difference(dict(zip(readers, pairs, strict=True)), micro_batch, unit)
        if error is not None:
            raise error


def difference(
    digests: Mapping[int, Digests], micro_batch: int, unit: str = "stage"
) -> DifferentDataError | None:
    """The error, if stages or ranks read different things as a micro-batch.

    Args:
        digests: Digests by reader.
        micro_batch: Its number.
        unit: What messages count.
    """
    for half, what in enumerate(("inputs", "labels")):
        known = [(reader, pair[half]) for reader, pair in digests.items() if pair[half] is not None]
        for reader, digest in known[1:]:
            if digest != known[0][1]:
                return DifferentDataError(
                    f"{unit}s {known[0][0]} and {reader} read different {what} as micro-batch "
                    f"{micro_batch}: do their loaders shuffle alike? (check_data=False "
                    "leaves this comparison out)"
                )
    return None


@lru_cache(maxsize=4096)
def _look(dtype: torch.dtype, shape: torch.Size | None) -> bytes:
    return f"{dtype} {'' if shape is None else tuple(shape)} ".encode()


def _sample(tensor: torch.Tensor) -> bytes:
    if _is_plain(tensor):
        elements = tensor.detach().resolve_neg().numpy().reshape(-1)
        if elements.size > SAMPLE:
            elements = elements.take(_places(elements.size, tensor.device).numpy())
        return elements.tobytes()
    if tensor.is_nested or tensor.is_meta:
        return b""
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_quantized:
        tensor = tensor.int_repr()
    flat = tensor.detach().resolve_conj().resolve_neg().reshape(-1)
    if flat.is_complex():
        flat = torch.view_as_real(flat).reshape(-1)
    bits = flat.view(_BITS[flat.element_size()])  # the same for every dtype
    if bits.numel() > SAMPLE:
        bits = bits.index_select(0, _places(bits.numel(), bits.device))
    return bits.cpu().numpy().tobytes()


def _is_plain(tensor: torch.Tensor) -> bool:
    known = type(tensor) is torch.Tensor and tensor.dtype in _SOON_READ
    return known and tensor.is_cpu and tensor.layout is torch.strided and tensor.is_contiguous()


@lru_cache(maxsize=64)
def _places(count: int, device: torch.device) -> torch.Tensor:
    places = torch.arange(SAMPLE, dtype=torch.float64) * _GOLDEN % 1 * count
    return places.long().to(device)
