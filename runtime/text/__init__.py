"""From text to micro-batches of tokens."""

from runtime.text.corpus import default_text, read_text
from runtime.text.errors import TextError
from runtime.text.tokens import tokenize
from runtime.text.windows import MicroBatch, Windows, check_sizes

__all__ = [
    "MicroBatch",
    "TextError",
    "Windows",
    "check_sizes",
    "default_text",
    "read_text",
    "tokenize",
]
