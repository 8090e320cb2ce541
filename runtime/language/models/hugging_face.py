"""A Hugging Face directory as the layers of a pipeline: which tensors of which files are whose.

Only headers are read to answer that, so a process can load its own layers and nothing else.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from runtime.checkpoint import CheckpointError, StoredTensor
from runtime.checkpoint.errors import require_layers
from runtime.checkpoint.formats import safetensors_files as safetensors
from runtime.checkpoint.formats import torch_files
from runtime.checkpoint.tensors import Spec
from runtime.language.models.directory import WEIGHT_FILES, weight_entry, weight_map
from runtime.language.models.families import Family

_IGNORED = re.compile(
    r"(^|\.)(rotary_emb\.inv_freq|attn\.(masked_)?bias|attention\.(masked_)?bias|position_ids)$"
)
"""Buffers that old checkpoints carry and that are computed today, as transformers has them in
`_keys_to_ignore_on_load_unexpected`."""


class HuggingFaceCheckpoint:
    """The weights of a directory; a `Source`."""

    kind = "Hugging Face"

    def __init__(self, path: Path, family: Family, num_blocks: int, *, tied: bool) -> None:
        """Name the layers of a directory of weights.

        Args:
            path: The directory.
            family: What the parts of the model are called.
            num_blocks: The number of its blocks.
            tied: Whether the head has the weight of the token embedding, if none is stored for it.
        """
        self.path, self.layers = path, num_blocks + 2
        self._family, self._num_blocks, self._tied = family, num_blocks, tied

    @property
    def identity(self) -> str:
        """The directory."""
        return str(self.path)

    def module(self, layer: int) -> str:
        """The kind of layer."""
        if layer == 0:
            return "embedding"
        if layer <= self._num_blocks:
            return "block"
        return "pooling" if self._family.head is None else "head"

    def tensors(self, layer: int) -> Mapping[str, StoredTensor]:
        """The tensors of a layer; see `Source`."""
        return self._by_layer[0].get(layer, {})

    def unexpected(self) -> list[str]:
        """Names of tensors in the directory that belong to no layer."""
        return self._by_layer[1]

    def left_out(self) -> list[str]:
        """Names of tensors in the directory that are computed today, or not used by evaluation."""
        return self._by_layer[2]

    def name_in_files(self, layer: int, name: str) -> str:
        """What the files call a tensor of a layer, if they do not use an old name."""
        part, _, rest = name.partition(".")
        return f"{self._family.parts(layer, self._num_blocks)[part]}.{rest}"

    def verify(self, layer: int) -> None:
        """Read all tensors of a layer: the format has no checksums."""
        for tensor in self.tensors(layer).values():
            tensor.verify()

    def require_layers(self, layers: int) -> None:
        """Refuse a model with another number of layers; see `Source`."""
        require_layers(self.path, self.layers, layers)

    @cached_property
    def _stored(self) -> dict[str, tuple[Path, Spec]]:
        """File and spec of every tensor in the directory."""
        return read_weights(self.path)[0]

    @cached_property
    def _by_layer(self) -> tuple[dict[int, dict[str, StoredTensor]], list[str], list[str]]:
        parts = {
            path: (layer, part)
            for layer in range(self.layers)
            for part, path in self._family.parts(layer, self._num_blocks).items()
        }
        layers: defaultdict[int, dict[str, StoredTensor]] = defaultdict(dict)
        unexpected, left_out = [], []
        for stored_as, (file, spec) in self._stored.items():
            place = self._place(stored_as, parts)
            if place is not None:
                layer, name = place
                layers[layer][name] = StoredTensor(layer, name, spec, file, stored_as)
            elif self._is_ignored(stored_as):
                left_out.append(stored_as)
            else:
                unexpected.append(stored_as)
        head, first = layers[self.layers - 1], layers[0].get("tokens.weight")
        if self._tied and "projection.weight" not in head and first is not None:
            head["projection.weight"] = StoredTensor(
                self.layers - 1, "projection.weight", first.spec, first.file, first.stored_as
            )
        return dict(layers), sorted(unexpected), sorted(left_out)

    def _place(
        self, stored_as: str, parts: Mapping[str, tuple[int, str]]
    ) -> tuple[int, str] | None:
        """Layer and name of a stored tensor, whose longest prefix that is a part tells both."""
        if _IGNORED.search(stored_as):
            return None
        name = self._current_name(stored_as)
        words = name.split(".")
        for end in range(len(words) - 1, 0, -1):
            # Checkpoints of the base model alone do not mention it in their names.
            for prefix in (".".join(words[:end]), ".".join([self._family.base, *words[:end]])):
                if prefix in parts:
                    layer, part = parts[prefix]
                    return layer, ".".join([part, *words[end:]])
        return None

    def _current_name(self, stored_as: str) -> str:
        name = stored_as.replace("LayerNorm.gamma", "LayerNorm.weight")
        name = name.replace("LayerNorm.beta", "LayerNorm.bias")
        for old, new in self._family.renamed.items():
            if name.startswith(f"{old}."):
                name = (new + name.removeprefix(old)).removeprefix(".")
        return name

    def _is_ignored(self, stored_as: str) -> bool:
        unused = self._current_name(stored_as).startswith(
            tuple(f"{part}." for part in self._family.unused)
        )
        return unused or _IGNORED.search(stored_as) is not None


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
        raise CheckpointError(f"{directory} has no weights: needed {' or '.join(WEIGHT_FILES)}")
    if entry.suffix != ".json":
        return {name: (entry, spec) for name, spec in _read_specs(entry).items()}, []
    indexed = weight_map(entry)
    stored: dict[str, tuple[Path, Spec]] = {}
    overruled = []
    for file in sorted(set(indexed.values())):
        path = directory / file
        for name, spec in _read_specs(path).items():
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


def _read_specs(path: Path) -> dict[str, Spec]:
    is_safetensors = path.suffix == ".safetensors"
    return safetensors.read_specs(path) if is_safetensors else torch_files.read_specs(path)
