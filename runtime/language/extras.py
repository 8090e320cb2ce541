"""What has to be installed for language models, beside what the compiler needs."""

from importlib.util import find_spec

NEEDED = ("torch", "transformers", "tokenizers", "safetensors")
"""Modules without which no language model can be evaluated."""

_BROUGHT = {*NEEDED, "gguf", "accelerate", "filelock", "huggingface_hub"}


def require_installed(modules: tuple[str, ...] = NEEDED) -> None:
    """Look for modules, without importing them.

    Raises:
        ModuleNotFoundError: one is not installed; its name is that of the first.
    """
    for module in modules:
        if find_spec(module) is None:
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)


def not_installed(error: ModuleNotFoundError) -> str:
    """The sentence for a module that is not there."""
    name = error.name or str(error)
    if name.partition(".")[0] in _BROUGHT:
        return f"{name} is not installed: pip install 'schedcc[models]' brings it"
    return f"{name} is not installed, and is needed here"
