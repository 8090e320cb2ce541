"""The model that a configuration describes, without memory for its weights."""

from __future__ import annotations

from pathlib import Path
from threading import get_ident
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.modules.module import register_module_module_registration_hook
from torch.overrides import TorchFunctionMode

from runtime.language.models.errors import ModelError
from runtime.language.models.quiet import LOCAL, quiet_transformers
from schedcc.io.plain_text import one_line

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


MOST_MODULES, MOST_ELEMENTS = 2**18, 2**30
"""Of a model's modules, and of one tensor that is computed when it is built, such as a mask."""

_FILLED = {torch.empty, torch.zeros, torch.ones, torch.full}
"""Make weights, too: those of all experts of a layer of Llama 4 Maverick have 1e10 elements."""
_COMPUTED = {torch.arange, torch.linspace, torch.eye}


class _Bounded(TorchFunctionMode):
    """Refuses, while a model is built, what its configuration could have grow without end."""

    def __init__(self, name: str) -> None:
        """Of the model called `name` in messages."""
        super().__init__()
        self._name, self._thread, self._modules = name, get_ident(), 0

    def __enter__(self) -> _Bounded:
        self._counted = register_module_module_registration_hook(self._count)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)  # type: ignore[no-untyped-call]
        self._counted.remove()

    def __torch_function__(
        self, function: Any, _: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in _FILLED or function in _COMPUTED:
            without = {key: value for key, value in kwargs.items() if key != "out"}
            made = function(*args, **{**without, "device": "meta"})
            if made.numel() > MOST_ELEMENTS and function in _FILLED and without == kwargs:
                return made  # as a parameter it would come to be on meta, filled in vain
            self._require("elements in a tensor", made.numel(), MOST_ELEMENTS)
        return function(*args, **kwargs)

    def require_computed(self, model: torch.nn.Module) -> None:
        """Refuse a model with tensors that are no parameters, and were too large to be made.

        Raises:
            ModelError: with the elements of one.
        """
        for module in model.modules():
            for value in (*module.buffers(recurse=False), *vars(module).values()):
                if isinstance(value, torch.Tensor):
                    self._require("elements in a tensor", value.numel(), MOST_ELEMENTS)

    def _count(self, *_: Any) -> None:
        if get_ident() == self._thread:
            self._modules += 1
            self._require("modules", self._modules, MOST_MODULES)

    def _require(self, what: str, found: int, most: int) -> None:
        if found > most:
            raise ModelError(
                f"the configuration of {self._name} asks for {found:,} {what} or more, needed at "
                f"most {most:,}"
            )


def without_memory(directory: Path, name: str, loader: Any, dtype: torch.dtype) -> PreTrainedModel:
    """The model that a configuration describes, in evaluation mode, its parameters on meta.

    What a model computes and does not load, such as the frequencies of rotary embeddings, is real.

    Args:
        directory: Holds the configuration.
        name: What messages call the model.
        loader: A class of transformers such as `AutoModelForCausalLM`.
        dtype: Of the parameters.

    Raises:
        ModelError: transformers does not know the family or does not accept the configuration, or
            the model would be larger than any, or has code of its own, which is not run.
    """
    from accelerate import init_empty_weights
    from transformers import AutoConfig

    try:
        with quiet_transformers():
            config: PreTrainedConfig = AutoConfig.from_pretrained(directory, **LOCAL)
            _require_known(name, config)
            _require_family(name, config, loader)
            with _Bounded(name) as bounded, init_empty_weights(include_buffers=False):
                model: Any = loader.from_config(config, dtype=dtype, trust_remote_code=False)
            bounded.require_computed(model)
    except ModelError:
        raise
    except Exception as error:
        # Configurations are checked by the code of each family, which raises what it likes.
        raise ModelError(
            f"the configuration of {name} cannot be used: {one_line(error)}"
        ) from error
    _require_own_code(name, config, loader, model)
    evaluated: PreTrainedModel = model.eval()
    return evaluated


def _require_known(name: str, config: PreTrainedConfig) -> None:
    """Refuse a rotary embedding that transformers does not know.

    Args:
        name: What messages call the model.
        config: Its configuration.

    Raises:
        ModelError: naming the type, and those that are known.
    """
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope: Any = getattr(config, "rope_parameters", None) or {}
    kind = rope.get("rope_type", "default")
    known = sorted({"default", *ROPE_INIT_FUNCTIONS})
    if kind not in known:
        raise ModelError(
            f"the configuration of {name} sets the type of the rotary embedding (rope_type) to "
            f"{kind!r}; the known types are {', '.join(known)}"
        )


def _require_family(name: str, config: PreTrainedConfig, loader: Any) -> None:
    """Refuse a family of which transformers has no such model; it would list all that it has.

    Args:
        name: What messages call the model.
        config: Its configuration.
        loader: The class of transformers that builds such models.

    Raises:
        ModelError: naming the family.
    """
    if type(config) not in loader._model_mapping:
        coder = " (an encoder and a decoder)" if config.is_encoder_decoder else ""
        raise ModelError(
            f"{name} is of the family {config.model_type!r}{coder}, of which transformers has no "
            f"model that {loader.__name__} builds"
        )


def _require_own_code(
    name: str, config: PreTrainedConfig, loader: Any, model: PreTrainedModel
) -> None:
    """Refuse a model whose directory names a class that is not the one that was built.

    Directories often name files with the code of a class (`auto_map`) that transformers has itself
    by now, under the same name. Of another name, it is another model, and its code is not run.

    Args:
        name: What messages call the model.
        config: Its configuration.
        loader: The class of transformers that built the model, such as `AutoModelForCausalLM`.
        model: What it built.

    Raises:
        ModelError: naming both classes.
    """
    code = getattr(config, "auto_map", None)
    named = code.get(loader.__name__) if isinstance(code, dict) else None
    if isinstance(named, str) and named.rpartition(".")[2] != type(model).__name__:
        raise ModelError(
            f"{name} needs code of its own ({named}, in auto_map of config.json), and code of "
            f"model directories is not run; transformers' {type(model).__name__} may differ from it"
        )
