"""From texts to micro-batches of tokens."""

from runtime.language.text.corpus import (
    DEFAULT_TEXT,
    Text,
    default_text,
    name_of,
    read_text,
    read_texts,
)
from runtime.language.text.documents import (
    DocumentMode,
    Documents,
    Origins,
    require_no_separator,
    tokenize,
    tokenize_documents,
)
from runtime.language.text.errors import TextError
from runtime.language.text.windows import IGNORED, MicroBatch, Windows, check_sizes

__all__ = [
    "DEFAULT_TEXT",
    "IGNORED",
    "DocumentMode",
    "Documents",
    "MicroBatch",
    "Origins",
    "Text",
    "TextError",
    "Windows",
    "check_sizes",
    "default_text",
    "name_of",
    "read_text",
    "read_texts",
    "require_no_separator",
    "tokenize",
    "tokenize_documents",
]
