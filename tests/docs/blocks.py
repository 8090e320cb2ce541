"""The fenced blocks of a page, and what each of them is; CONTRIBUTING.md has the rules."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sybil import Document, Region
from sybil.parsers.markdown.lexers import FencedCodeBlockLexer

from tests.support.paths import ROOT

SHOWN = {"text", "json", "toml", "csv", "mermaid"}
"""Languages of blocks that are read and not run."""

PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md"]
_COMMENT = re.compile(r"<!-- (?P<name>not run|exit status): (?P<value>[^\n]+) -->\n\Z")
_LEXER = FencedCodeBlockLexer(language=".*")


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: str
    line: int
    language: str
    file: str
    """The file that it is, or nothing."""
    source: str
    not_run: str
    """The reason, or nothing."""
    exit_status: int
    below: bool
    """Nothing but white space is between the block before and this one."""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    """All blocks of a page, in order."""
    document = Document.parse(str(page), _regions)
    found = []
    end = 0
    for example in document:
        start = example.region.start
        between = document.text[end:start]
        end = example.region.end
        language, _, rest = example.region.lexemes["language"].strip().partition(" ")
        title = re.search(r'title="([^"]+)"', rest)
        comment = _COMMENT.search(between)
        told = {comment["name"]: comment["value"]} if comment else {}
        found.append(
            Block(
                page=str(page.relative_to(ROOT)),
                line=example.line,
                language=language,
                file=title[1] if title else "",
                source=str(example.region.lexemes["source"]),
                not_run=told.get("not run", ""),
                exit_status=int(told.get("exit status", 0)),
                below=bool(found) and not between.strip(),
            )
        )
    return found


def _regions(document: Document) -> Iterable[Region]:
    for region in _LEXER(document):
        region.parsed, region.evaluator = region.lexemes["source"], lambda _: None
        yield region
