"""What is in a page, read as a browser reads it."""

import json
from html.parser import HTMLParser
from typing import Any


class Page(HTMLParser):
    """The elements of a page, with the text of its scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.texts.append("")
        self._open = True

    def handle_endtag(self, tag: str) -> None:  # noqa: ARG002
        self._open = False

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts[-1] += data

    def all(self, tag: str) -> list[tuple[dict[str, str | None], str]]:
        """Attributes and text of the elements with this tag."""
        found = zip(self.elements, self.texts, strict=True)
        return [(attrs, text) for (name, attrs), text in found if name == tag]

    @property
    def data(self) -> dict[str, Any]:
        """What its script draws."""
        (text,) = [text for attrs, text in self.all("script") if attrs.get("id") == "data"]
        return json.loads(text)


def rows_of(data: dict[str, Any], panel: int = 0) -> list[list[tuple[Any, ...]]]:
    """The instructions of a panel, of each rank: name, stage, micro-batch, start and end."""
    shown, columns = data["panels"][panel], data["panels"][panel]["columns"]
    names = [data["ops"][code]["name"] for code in columns["op"]]
    fields = (columns[name] for name in ("stage", "micro_batch", "start", "end"))
    rows = list(zip(names, *fields, strict=True))
    return [rows[rank["first"] : rank["stop"]] for rank in shown["ranks"]]
