"""A page of its own, in one file: HTML, style, script and data, and nothing from elsewhere."""

import hashlib
import html
import json
import re
from base64 import b64encode
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

from schedcc.pictures.content import content
from schedcc.pictures.panel import Panel

_SCRIPTS = ("data", "view", "paint", "marks", "words", "breakdown", "input", "page")
"""Parts of one script, in their order."""

MOST_BOXES = 2**20
"""Instructions of a page. A browser is no longer quick with more."""


def page(title: str, panels: Sequence[Panel]) -> str:
    """The page that draws panels one above the other, on one time axis.

    What comes from plans and recordings is in it as data and as escaped text. Besides, the page
    allows no script, style or request but its own (its Content-Security-Policy names their hashes).

    Args:
        title: Of the page.
        panels: At least one.

    Raises:
        ValueError: there are more than `MOST_BOXES` instructions.
    """
    boxes = sum(len(panel.boxes.start) for panel in panels)
    if boxes > MOST_BOXES:
        raise ValueError(
            f"found {boxes:,} instructions, needed at most {MOST_BOXES:,} for a page (show --steps "
            "A:B takes a part)"
        )
    style, script = _asset("page.css"), "".join(_asset(f"{name}.js") for name in _SCRIPTS)
    # The styles of single elements are set by the script, which needs no permission.
    policy = f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}"
    parts = {
        "title": html.escape(title),
        "policy": html.escape(policy),
        "style": style,
        "script": script,
        "data": embedded(json.dumps(content(title, panels), separators=(",", ":"))),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _asset("page.html"))


def embedded(text: str) -> str:
    r"""JSON as it can stand in a script element: with nothing that could end the element.

    >>> print(embedded('"</script>"'))
    "\u003c/script\u003e"
    """
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


@cache
def _asset(name: str) -> str:
    return (files("schedcc.pictures") / "assets" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{b64encode(digest).decode()}'"
