"""Imports point one way: `schemas <- schedcc <- runtime`; the interpreter needs no compiler."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).parents[2]
ROOMS = {
    "schedcc": (
        ("_modules", "errors", "table"),
        ("analysis", "passes", "schedules"),
        ("checks", "derive"),
        ("verify",),
        ("proof",),
        ("compiler",),
        ("certify", "endless", "io", "simulation"),
        ("recordings",),
        ("pictures", "trace"),
        ("testing",),
        ("cli",),
        ("entry",),
    ),
    "runtime": (
        ("device", "imports", "lifeline", "tensors"),
        ("transport",),
        ("failure",),
        ("testing",),
        ("distributed", "data"),
        ("outputs", "modules", "checkpoint", "recording"),
        ("execution",),
        ("planning",),
        ("evaluation",),
        ("evaluator",),
        ("language",),
        ("cli",),
        ("entry",),
    ),
}
"""Folders and files of a package: each imports only from lines above its own."""

FORBIDDEN = {
    "schemas": {"schedcc", "runtime", "tests", "examples", "benchmarks"},
    "schedcc": {"runtime", "tests", "examples", "benchmarks"},
    "runtime": {"tests", "examples", "benchmarks"},
}


def imported(file: Path) -> Iterator[str]:
    """The modules that a file imports anywhere, also inside functions, by absolute names."""
    package = file.parent.relative_to(ROOT).parts
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)  # may be modules too


def outside(file: Path, names: set[str]) -> list[str]:
    return [name for name in imported(file) if name.partition(".")[0] in names]


def files_of(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_package_imports_one_that_stands_on_it(package):
    files = files_of(package)
    assert files
    found = {str(file.relative_to(ROOT)): outside(file, FORBIDDEN[package]) for file in files}
    assert {file: names for file, names in found.items() if names} == {}


def room(file: Path) -> str:
    """The folder of a file, or the file itself, under its package."""
    return file.relative_to(ROOT).with_suffix("").parts[1]


@pytest.mark.parametrize("package", ROOMS)
def test_rooms_import_only_from_rooms_below(package):
    level = {name: number for number, line in enumerate(ROOMS[package]) for name in line}
    found = set()
    for file in files_of(package):
        here = room(file)
        if here.startswith("__"):  # offers the public names
            continue
        assert here in level, f"{file} is in no line of the table"
        for name in imported(file):
            parts = name.split(".")
            above = len(parts) > 1 and parts[0] == package and parts[1] in level
            if above and parts[1] != here and level[parts[1]] >= level[here]:
                found.add(f"{here} imports {parts[1]}: {file.relative_to(ROOT)}")
    assert found == set()


def test_nothing_that_ships_imports_what_is_for_tests():
    for package in FORBIDDEN:
        for file in files_of(package):
            if room(file) != "testing":
                assert not [n for n in imported(file) if n.split(".")[1:2] == ["testing"]], file


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_files_import_each_other_in_a_circle(package):
    graph = nx.DiGraph()
    for file in files_of(package):
        if len(file.relative_to(ROOT).parts) == 2 and file.name == "__init__.py":
            continue
        for name in set(imported(file)):
            parts = name.split(".")
            target = ROOT.joinpath(*parts)
            for candidate in (target.with_suffix(".py"), target / "__init__.py"):
                if parts[0] == package and candidate.exists() and candidate != file:
                    graph.add_edge(str(file.relative_to(ROOT)), str(candidate.relative_to(ROOT)))
    assert [sorted(c) for c in nx.strongly_connected_components(graph) if len(c) > 1] == []


def modules_under(start: Path) -> set[Path]:
    """`start` and all files of its package that it needs, directly or not.

    The package's own `__init__.py` is left out: it only offers the public names to callers.
    """
    package = start.relative_to(ROOT).parts[0]
    needed, new = set(), [start]
    while new:
        file = new.pop()
        if file in needed:
            continue
        needed.add(file)
        for name in imported(file):
            parts = name.split(".")
            if parts[0] == package:
                prefixes = [ROOT.joinpath(*parts[:end]) for end in range(2, len(parts) + 1)]
                candidates = [
                    c for p in prefixes for c in (p.with_suffix(".py"), p / "__init__.py")
                ]
                new += [candidate for candidate in candidates if candidate.exists()]
    return needed


def test_the_interpreter_runs_plans_without_the_compiler():
    needed = modules_under(ROOT / "runtime" / "execution" / "interpreter.py")
    names = {str(file.relative_to(ROOT / "runtime")) for file in needed}
    assert {"execution/interpreter.py", "execution/buffers.py", "transport/protocol.py"} <= names
    found = {name: outside(ROOT / "runtime" / name, {"schedcc"}) for name in names}
    assert {name: modules for name, modules in found.items() if modules} == {}


def test_imports_inside_functions_and_relative_ones_are_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    file = tmp_path / "runtime" / "transport" / "local.py"
    file.parent.mkdir(parents=True)
    file.write_text(
        "def f():\n    import schedcc.graph\n    from ..stage import x\n    from . import y\n"
    )
    assert set(imported(file)) == {
        "schedcc.graph",
        "runtime.stage",
        "runtime.stage.x",
        "runtime.transport",
        "runtime.transport.y",
    }


@pytest.mark.parametrize("module", ["schemas", "schemas.json_schemas", "schedcc", "schedcc.cli"])
def test_the_compiler_works_where_torch_is_not_installed(module):
    program = f"""
import sys
sys.modules.update(dict.fromkeys(["torch", "transformers"]))  # importing them now fails
import {module}
assert not [name for name in sys.modules if name.partition(".")[0] == "runtime"]
if "schedcc" in sys.modules:
    import schedcc
    assert schedcc.check(schedcc.compile_pipeline(4, 3)).ok
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("torch", []),
        ("torch", ["inspect", "m"]),
        ("torch", ["convert", "m", "d"]),
        ("transformers", []),
        ("tokenizers", []),
        ("safetensors", ["inspect", "m"]),
    ],
)
def test_pipeval_says_in_one_sentence_what_is_not_installed(missing, words):
    blocked = f"import sys; sys.modules[{missing!r}] = None; sys.argv = ['pipeval', *{words!r}]; "
    code = blocked + "from runtime.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    said = f"pipeval: {missing} is not installed: pip install 'schedcc[models]' brings it\n"
    assert done.stderr == said


OLD = """
import importlib.metadata as metadata, sys
installed = metadata.version
metadata.version = lambda name: "4.57.1" if name == "transformers" else installed(name)
sys.argv = ["pipeval", "inspect", "smollm2"]
from runtime.cli import main; main()
"""


def test_transformers_4_is_refused_with_what_to_do():
    done = subprocess.run([sys.executable, "-c", OLD], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    said = "pipeval: transformers 4.57.1 is installed, needed 5 or newer: pip install -U 'schedcc"
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == 1


def test_what_needs_torch_says_in_one_sentence_that_it_is_not_installed():
    program = "import sys; sys.modules['torch'] = None; import runtime; runtime.Evaluator"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    said = "runtime.Evaluator needs torch: pip install 'schedcc[runtime]' brings it"
    assert done.stderr.strip().splitlines()[-1] == f"ModuleNotFoundError: {said}"


def test_the_runtime_offers_its_public_names_and_no_others():
    import runtime

    assert set(runtime.__all__) < set(dir(runtime))
    assert all(getattr(runtime, name).__name__ == name for name in runtime.__all__)
    with pytest.raises(AttributeError, match="module 'runtime' has no attribute 'Nothing'"):
        runtime.Nothing  # noqa: B018
