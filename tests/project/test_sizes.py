"""Files, functions and folders stay small enough to be read at once."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILES = [
    file
    for folder in ("schemas", "schedcc", "runtime", "benchmarks", "examples", "build_backend")
    for file in sorted((ROOT / folder).rglob("*.py"))
]
LINES_OF_A_FILE = 300
LINES_OF_A_FUNCTION = 60
FILES_OF_A_FOLDER = 13
LONGER = {
    (
        "runtime/cli/evaluate.py",
        "evaluate",
    ): "an option of pipeval is a line of it, and one of a job"
}
"""Functions that may be longer, and why."""


def functions(source: str) -> Iterator[tuple[str, int]]:
    """The functions of a file, and their lines from the signature on, without the docstring."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            docstring = ast.get_docstring(node, clean=False) or ""
            length = node.end_lineno - node.lineno + 1 - len(docstring.splitlines())
            yield node.name, length


def test_no_file_is_long():
    lengths = {str(f.relative_to(ROOT)): len(f.read_text().splitlines()) for f in FILES}
    assert {file: n for file, n in lengths.items() if n > LINES_OF_A_FILE} == {}


def test_no_function_is_long():
    lengths = [
        (str(file.relative_to(ROOT)), name, length)
        for file in FILES
        for name, length in functions(file.read_text())
    ]
    assert len(lengths) > 1000, "there are functions to be looked at"
    long = {(file, name) for file, name, length in lengths if length > LINES_OF_A_FUNCTION}
    assert long == set(LONGER)


def test_no_folder_holds_many_files():
    counts = Counter(str(file.parent.relative_to(ROOT)) for file in FILES)
    assert {folder: n for folder, n in counts.items() if n > FILES_OF_A_FOLDER} == {}


def test_a_docstring_does_not_count_and_inner_functions_do():
    source = (
        'def f():\n    """One.\n\n    Two.\n    """\n    def g():\n        return 1\n    return g\n'
    )
    assert dict(functions(source)) == {"f": 4, "g": 2}
