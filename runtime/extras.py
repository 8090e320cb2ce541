"""What has to be installed for language models, beside what the compiler needs."""

from importlib.util import find_spec

NEEDED = ("torch", "transformers", "tokenizers", "safetensors")
"""Modules without which no language model can be evaluated."""


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
    return f"{error.name} is not installed: pip install 'schedcc[models]' brings it"
