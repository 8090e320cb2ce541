"""What has to be installed for language models, beside what the compiler needs."""

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

NEEDED = ("torch", "transformers", "tokenizers", "safetensors")
"""Modules without which no language model can be evaluated."""

OLDEST_TRANSFORMERS = 5

_BROUGHT = {*NEEDED, "gguf", "accelerate", "filelock", "huggingface_hub"}


def require_installed(modules: tuple[str, ...] = NEEDED) -> None:
    """Look for modules, without importing them.

    Raises:
        ModuleNotFoundError: one is not installed; its name is that of the first.
    """
    for module in modules:
        if find_spec(module) is None:
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)


def require_transformers(found: str | None = None) -> None:
    """Refuse transformers 4, whose models and files are described otherwise.

    Args:
        found: The version; default: what is installed, if its package says so.

    Raises:
        ImportError: it is older than 5.

    >>> require_transformers("5.23.0")
    >>> require_transformers("4.57.1")
    Traceback (most recent call last):
    ImportError: transformers 4.57.1 is installed, needed 5 or newer: pip install -U \
'schedcc[models]', in an environment of its own if other programs need transformers 4
    """
    if found is None:
        try:
            found = version("transformers")
        except PackageNotFoundError:  # it is missing, which its import says, or has no metadata
            return
    if int(found.partition(".")[0]) < OLDEST_TRANSFORMERS:
        raise ImportError(
            f"transformers {found} is installed, needed {OLDEST_TRANSFORMERS} or newer: pip "
            "install -U 'schedcc[models]', in an environment of its own if other programs need "
            "transformers 4"
        )


def not_installed(error: ModuleNotFoundError) -> str:
    """The sentence for a module that is not there."""
    name = error.name or str(error)
    if name.partition(".")[0] in _BROUGHT:
        return f"{name} is not installed: pip install 'schedcc[models]' brings it"
    return f"{name} is not installed, and is needed here"
