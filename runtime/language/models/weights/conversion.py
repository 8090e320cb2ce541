"""The names and forms that tensors have in files, and those that they have in a model.

transformers declares for each family how the tensors of its checkpoints become those of the model:
most are only renamed; those of experts are stacked, others split. The same rules are applied here
to some tensors at a time, and by shapes alone where only these are wanted.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.core_model_loading import WeightConverter


@dataclass
class Group:
    """Tensors of files that together become tensors of the model."""

    first: str
    """The tensor of the model that they become, or the first of several."""
    converter: WeightConverter | None
    """None: the one tensor has only another name."""
    sources: list[tuple[str, str]] = field(default_factory=list)
    """Which pattern of the converter each stands for, and its name in the files; in order."""

    def convert(
        self, model: PreTrainedModel, read: Callable[[str], torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """The tensors of the model by name.

        Args:
            model: Says what transformers wants to know of the configuration.
            read: Gives a tensor by its name in the files; it may be on the meta device.
        """
        if self.converter is None:
            return {self.first: read(self.sources[0][1])}
        converter: Any = copy.deepcopy(self.converter)
        for pattern, name in self.sources:
            converter.add_tensor(self.first, name, pattern, read(name))
        made = converter.convert(self.first, model=model, config=model.config)
        return {
            name: value[0] if isinstance(value, list) else value for name, value in made.items()
        }


class Conversion:
    """The rules of one model."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Ask transformers for them; the model may be on the meta device."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        rules = get_model_conversion_mapping(model)
        self.model = model
        self._renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        self._converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
        self._by_pattern = {p: rule for rule in self._converters for p in rule.source_patterns}
        self._state = model.state_dict()
        ignored = model._keys_to_ignore_on_load_unexpected or ()
        self._ignored = [re.compile(pattern) for pattern in ignored]

    def groups(self, stored: Iterable[str]) -> tuple[list[Group], list[str], list[str]]:
        """Divide the tensors of files into groups.

        Args:
            stored: Their names.

        Returns:
            The groups, the names of tensors that belong to none, and of those that transformers
            declares to be of no use.
        """
        from transformers.core_model_loading import dot_natural_key

        groups: dict[str, Group] = {}
        unknown: list[str] = []
        ignored: list[str] = []
        for name in sorted(stored, key=dot_natural_key):
            target, pattern = self._target(name)
            if target not in self._state:
                useless = any(regex.search(name) for regex in self._ignored)
                (ignored if useless else unknown).append(name)
                continue
            converter = None if pattern is None else self._by_pattern[pattern]
            group = groups.setdefault(target, Group(target, converter))
            group.sources.append((pattern or name, name))
        return list(groups.values()), unknown, ignored

    def name_in_files(self, name: str) -> str:
        """What files call a tensor of the model, if they do not call it by an old name."""
        return next(iter(self.to_files({name: self._state[name]})), name)

    def to_files(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tensors of files that tensors of the model come from."""
        from transformers.core_model_loading import revert_weight_conversion

        reverted: dict[str, torch.Tensor] = revert_weight_conversion(self.model, dict(state))
        return reverted

    def _target(self, name: str) -> tuple[str, str | None]:
        from transformers.core_model_loading import rename_source_key

        prefix = self.model.base_model_prefix
        rules = self._renamings, self._converters
        target, pattern = rename_source_key(name, *rules, prefix, self._state)
        if target not in self._state and name in self._state:
            return rename_source_key(name, [], [], prefix, self._state)
        return target, pattern
