"""What the built site links to is there, and it loads nothing from elsewhere.

`make docs` runs `python -m tests.tools.site_links build/site`. The generator checks the
links of pages; this also sees those in docstrings, pictures, scripts and styles.
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

MADE_BY_SCRIPTS = "__"
"""How the ids begin that only the theme's own script looks up."""


class Page(HTMLParser):
    """The ids of a page, where its links lead, and what it loads."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attrs if value is not None}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a":
            self.links += [given["href"]] if "href" in given else []
        elif tag == "link" and given.get("rel") not in ("canonical", "prev", "next"):
            self.loaded.append(given.get("href", ""))
        elif "src" in given:
            self.loaded.append(given["src"])

    def has(self, fragment: str) -> bool:
        """Whether a link to this place of the page leads somewhere."""
        return not fragment or fragment.startswith(MADE_BY_SCRIPTS) or fragment in self.ids


def problems(site: Path) -> list[str]:
    """Links that lead nowhere, and whatever is loaded from another host."""
    pages = {file.resolve(): Page(file) for file in site.rglob("*.html")}
    found = []
    for file, page in pages.items():
        here = file.relative_to(site.resolve())
        found += [f"{here} loads {url}" for url in page.loaded if urlsplit(url).netloc]
        for url in [*page.links, *page.loaded]:
            path, fragment = urldefrag(unquote(url))
            if urlsplit(url).scheme or urlsplit(url).netloc:
                continue
            start = site.resolve() if path.startswith("/") else file.parent
            target = (start / path.lstrip("/")).resolve() if path else file
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                found.append(f"{here} links to {url}, which is not there")
            elif target in pages and not pages[target].has(fragment):
                found.append(f"{here} links to {url}, where no such place is")
    return found


def main() -> None:
    """Check the site in the folder that is given, and exit with 1 if something is wrong."""
    site = Path(sys.argv[1])
    found = problems(site)
    pages = len(list(site.rglob("*.html")))
    print("\n".join([*found, f"{pages} pages, {len(found)} problems"]))
    sys.exit(1 if found or not pages else 0)


if __name__ == "__main__":
    main()
