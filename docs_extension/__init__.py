"""Parts of pages that are made from the code when the site is built: commands, files, errors.

An extension of Python-Markdown, which `zensical.toml` names. In a page stands a comment such as
`<!-- commands: schedcc -->`; in its place the site has Markdown made from what the comment names.
"""

import re
from collections.abc import Callable, Mapping

from markdown import Extension, Markdown
from markdown.preprocessors import Preprocessor

from docs_extension.commands import commands
from docs_extension.errors import errors
from docs_extension.json_schemas import json_schema

PARTS: Mapping[str, Callable[[str], str]] = {
    "commands": commands,
    "errors": errors,
    "json schema": json_schema,
}
"""What makes the Markdown that stands in place of a comment, by its first words."""

_COMMENT = re.compile(r"<!-- ([a-z ]+): (.*?) -->")
_BEFORE_FENCES = 27
"""Priority: behind the normalisation of white space (30), ahead of fenced blocks (25)."""


class GeneratedParts(Preprocessor):
    """Puts generated Markdown in the place of comments."""

    def run(self, lines: list[str]) -> list[str]:
        """The lines of a page, comments replaced."""
        made: list[str] = []
        for line in lines:
            found = _COMMENT.fullmatch(line)
            part = PARTS.get(found[1]) if found else None
            made += part(found[2]).splitlines() if found and part else [line]
        return made


class GeneratedPartsExtension(Extension):
    """Registers the preprocessor."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802 (the name is Markdown's)
        """Enter what this extension does."""
        md.preprocessors.register(GeneratedParts(md), "generated_parts", _BEFORE_FENCES)


def makeExtension(**settings: object) -> GeneratedPartsExtension:  # noqa: N802 (Markdown's)
    """What Markdown calls."""
    return GeneratedPartsExtension(**settings)
