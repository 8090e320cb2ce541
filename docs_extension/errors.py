"""The classes of errors of a package, with the first paragraph of what they say of themselves."""

import ast
from collections.abc import Iterator
from pathlib import Path

from docs_extension.markdown_table import table

ROOT = Path(__file__).parents[1]


def errors(package: str) -> str:
    """A table of the public errors of a package, found by the names of their classes."""
    rows = sorted(_rows(package))
    return table(["error", "is a", "when"], rows)


def _rows(package: str) -> Iterator[list[str]]:
    public = __import__(package).__all__
    for file in (ROOT / package).rglob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.ClassDef) or not node.name.endswith("Error"):
                continue
            if node.name.startswith("_"):
                continue
            module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            where = package if node.name in public else module.removesuffix(".__init__")
            first = (ast.get_docstring(node) or "").partition("\n\n")[0]
            bases = ", ".join(f"`{ast.unparse(base)}`" for base in node.bases)
            yield [f"`{where}.{node.name}`{{ .whole }}", bases, first]
