"""A Hugging Face directory as the layers of a pipeline: which tensors of which files are whose.

Only headers are read to answer that, so a process can load its own layers and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from runtime.checkpoint import CheckpointError, StoredTensor
from runtime.checkpoint.errors import require_layers
from runtime.checkpoint.formats.tensor_files import read_specs
from runtime.checkpoint.tensors import Spec
from runtime.language.models.files.directory import weight_entry, weight_map
from runtime.language.models.files.names import WEIGHTS
from runtime.language.models.weights.conversion import Conversion, Group
from schedcc.io.plain_text import one_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_COMPUTED = re.compile(
    r"(^|\.)(rotary_emb\.inv_freq|attn\.(masked_)?bias|attention\.(masked_)?bias|position_ids)$"
)
"""Buffers that old checkpoints carry and that are computed today."""


@dataclass(frozen=True)
class ConvertedTensor(StoredTensor):
    """A tensor that is made of others when it is read."""

    make: Callable[[], torch.Tensor] | None = None

    def read(self) -> torch.Tensor:
        """Read what it is made of, and make it; see `StoredTensor`."""
        assert self.make is not None
        return self.make()


class HuggingFaceCheckpoint:
    """The weights of a directory; a `Source`."""

    kind = "Hugging Face"

    def __init__(
        self,
        path: Path,
        model: PreTrainedModel,
        names: Sequence[Mapping[str, str]],
        *,
        last: str = "head",
        unused: tuple[str, ...] = (),
    ) -> None:
        """Name the layers of a directory of weights.

        Args:
            path: The directory.
            model: What its configuration describes; on the meta device.
            names: For each layer, what the model calls the layer's tensors.
            last: What the last layer is, for people.
            unused: Parts of checkpoints that evaluation has no use for.
        """
        self.path, self.layers = path, len(names)
        self.conversion = Conversion(model)
        self._model, self._names, self._last, self._unused = model, names, last, unused
        self._tied: dict[str, str] = dict(model.all_tied_weights_keys)

    @property
    def identity(self) -> str:
        """The directory."""
        return str(self.path)

    def module(self, layer: int) -> str:
        """The kind of layer."""
        return {0: "embedding", self.layers - 1: self._last}.get(layer, "block")

    def tensors(self, layer: int) -> Mapping[str, StoredTensor]:
        """The tensors of a layer; see `Source`."""
        found = {}
        by_target = self._by_target
        for name, target in (self._names[layer] if layer < self.layers else {}).items():
            place = next((n for n in (target, *self._ties(target)) if n in by_target), None)
            if place is not None:
                found[name] = self._stored_tensor(layer, name, place)
        return found

    def unexpected(self) -> list[str]:
        """Names of tensors in the directory that belong to no layer."""
        return self._sorted_out[1]

    def left_out(self) -> list[str]:
        """Names of tensors in the directory that are computed today, or not used by evaluation."""
        return self._sorted_out[2]

    def name_in_files(self, layer: int, name: str) -> str:
        """What the files call a tensor of a layer, if they do not use an old name."""
        return self.conversion.name_in_files(self._names[layer][name])

    def verify(self, layer: int) -> None:
        """Read all tensors of a layer: the format has no checksums."""
        for tensor in self.tensors(layer).values():
            tensor.verify()

    def require_layers(self, layers: int) -> None:
        """Refuse a model with another number of layers; see `Source`."""
        require_layers(self.path, self.layers, layers)

    def _ties(self, target: str) -> list[str]:
        """Other names of the same weight."""
        source = self._tied.get(target)
        if source is not None:
            return [source]
        return [name for name, source in self._tied.items() if source == target]

    def _stored_tensor(self, layer: int, name: str, target: str) -> StoredTensor:
        group, spec = self._by_target[target]
        first = group.sources[0][1]
        file = self._stored[first][0]
        if group.converter is None:
            return StoredTensor(layer, name, spec, file, first)

        def make() -> torch.Tensor:
            return group.convert(self._model, self._read)[target]

        return ConvertedTensor(layer, name, spec, file, target, make=make)

    def _read(self, name: str) -> torch.Tensor:
        file, spec = self._stored[name]
        return StoredTensor(0, name, spec, file, name).read()

    @cached_property
    def _stored(self) -> dict[str, tuple[Path, Spec]]:
        """File and spec of every tensor in the directory."""
        return read_weights(self.path)[0]

    @cached_property
    def _sorted_out(self) -> tuple[list[Group], list[str], list[str]]:
        """Groups of tensors, those that belong to no layer, and those that are of no use."""
        left_out = {name for name in self._stored if _COMPUTED.search(name)}
        groups, unknown, ignored = self.conversion.groups(self._stored.keys() - left_out)
        used = {target for names in self._names for target in names.values()}
        used |= {tie for target in used for tie in self._ties(target)}
        kept = []
        for group in groups:
            if group.converter is not None or group.first in used:
                kept.append(group)
            else:
                unknown += [name for _, name in group.sources]
        unused = tuple(f"{part}." for part in self._unused)
        left_out |= {*ignored, *(name for name in unknown if name.startswith(unused))}
        return kept, sorted(set(unknown) - left_out), sorted(left_out)

    @cached_property
    def _by_target(self) -> dict[str, tuple[Group, Spec]]:
        """Group and spec of every tensor of the model that the files hold."""
        found: dict[str, tuple[Group, Spec]] = {}
        for group in self._sorted_out[0]:
            try:
                made = group.convert(self._model, self._without_memory)
            except Exception as error:  # of shapes that cannot be stacked, for example
                raise CheckpointError(
                    f"{self.path} holds {group.sources[0][1]}, which does not become "
                    f"{group.first}: {one_line(error)}"
                ) from error
            found |= {name: (group, Spec.of(tensor)) for name, tensor in made.items()}
        return found

    def _without_memory(self, name: str) -> torch.Tensor:
        spec = self._stored[name][1]
        return torch.empty(spec.shape, dtype=spec.dtype, device="meta")


def read_weights(directory: Path) -> tuple[dict[str, tuple[Path, Spec]], list[str]]:
    """File and spec of every tensor in a directory, from headers alone.

    Where several files hold a tensor of one name, the index decides.

    Returns:
        The tensors, and the names of those of which another file holds one that does not count.

    Raises:
        CheckpointError: there are none, a file is missing or damaged, or an index leaves it open
            which of two tensors counts.
        ModelError: an index is damaged, or there are two sets of weights.
    """
    entry = weight_entry(directory)
    if entry is None:
        raise CheckpointError(f"{directory} has no weights: needed {' or '.join(WEIGHTS)}")
    if entry.suffix != ".json":
        return {name: (entry, spec) for name, spec in read_specs(entry).items()}, []
    indexed = weight_map(entry)
    stored: dict[str, tuple[Path, Spec]] = {}
    overruled = []
    for file in sorted(set(indexed.values())):
        path = directory / file
        for name, spec in read_specs(path).items():
            if indexed.get(name, file) != file:
                overruled.append(name)
            elif name in stored:
                raise CheckpointError(
                    f"tensor {name} is in {stored[name][0]} and in {path}, and {entry.name} does "
                    "not say which counts"
                )
            else:
                stored[name] = path, spec
    return stored, overruled
