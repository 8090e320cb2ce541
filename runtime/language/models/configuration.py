"""What of a configuration transformers would stumble over, or pass over without a word."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runtime.language.models.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def require_known(name: str, config: PreTrainedConfig) -> None:
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


def require_own_code(
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
