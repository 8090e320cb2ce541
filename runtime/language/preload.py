"""What every process needs that evaluates a language model: imported once, before it forks."""

from importlib import import_module

MODULES = (
    "accelerate",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",  # and with it what all families import
)


def preload() -> None:
    """Import it."""
    for module in MODULES:
        import_module(module)
