"""The reference names everything that there is."""

import re
from difflib import unified_diff

import pytest
import typer

import runtime
import schedcc
import schedcc.testing
from docs_extension.commands import commands
from docs_extension.errors import errors
from docs_extension.json_schemas import json_schema
from runtime.cli import app as pipeval_app
from schedcc.cli import app as schedcc_app
from schemas import FindingCode
from schemas.json_schemas import DIRECTORY
from tests.docs.blocks import PAGES, blocks_of
from tests.support.paths import ROOT

REFERENCE = ROOT / "docs" / "reference"


def page(name: str) -> str:
    return (REFERENCE / f"{name}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("module", "name"), [(schedcc, "compiler"), (runtime, "runtime"), (schedcc.testing, "testing")]
)
def test_every_public_name_has_its_place_in_the_reference(module, name):
    documented = set(re.findall(rf"::: {module.__name__}\.(\w+)$", page(name), re.MULTILINE))
    in_table = {public for public in module.__all__ if public.endswith("Error")} - documented
    assert documented | in_table == set(module.__all__)
    table = errors(module.__name__) if in_table else ""
    assert all(f"`{module.__name__}.{public}`" in table for public in in_table)


@pytest.mark.parametrize(("name", "app"), [("schedcc", schedcc_app), ("pipeval", pipeval_app)])
def test_the_page_of_commands_has_every_option_as_help_has_it(name, app):
    assert f"<!-- commands: {name} -->" in page("commands")
    text = commands(name)
    assert "\b" not in text  # which only a terminal's help needs
    program = typer.main.get_command(app)
    for word, command in [("", program), *program.commands.items()]:
        assert f"## `{name} {word}".rstrip() + "`\n" in text
        section = text.split(f"## `{name} {word}".rstrip() + "`\n")[1].split("\n## ")[0]
        for parameter in command.params:
            assert all(f"`{option}`" in section for option in parameter.opts), parameter.name
            assert " ".join((parameter.help or "").split()).replace("|", "\\|") in section


def test_every_file_format_is_on_the_page_of_files_and_every_key_of_it_in_its_table():
    shown = re.findall(r"<!-- json schema: (\S+)(.*?) -->", page("files"))
    assert {name for name, _ in shown} == {
        file.name.removesuffix(".schema.json") for file in DIRECTORY.iterdir()
    }
    for name, definitions in shown:
        assert "| `" in json_schema(f"{name} {definitions}")
    table = json_schema("costs SingleCost")
    assert "| `transfer` | number or list of number | `0.0` |" in table
    assert '| `of` | `"forward"`, `"transfer"`, `"load"` | needed |' in table


def test_every_finding_code_has_a_row_and_an_example():
    findings = (ROOT / "docs" / "how-to" / "findings.md").read_text(encoding="utf-8")
    for code in FindingCode:
        assert f"| `{code}` |" in page("errors")
        assert re.search(rf"## `{code}`\n.*?\n```text\n(\w+: .*\n)*?{code}: ", findings, re.DOTALL)


def test_every_variable_that_the_code_reads_is_on_the_page_of_the_environment():
    pattern = re.compile(r"environ(?:\.get|\.setdefault|\.pop)?[\[(]\s*\"([A-Z_]+)\"")
    files = [*(ROOT / "runtime").rglob("*.py"), *(ROOT / "schedcc").rglob("*.py")]
    read = {name for file in files for name in pattern.findall(file.read_text(encoding="utf-8"))}
    assert {"SCHEDCC_CACHE", "MASTER_ADDR"} <= read
    text = page("environment")
    assert {name for name in read if f"`{name}`" not in text and "SLURM" not in name} == set()


def test_moving_from_deepspeed_changes_fewer_than_ten_lines():
    blocks = {block.file: block for block in blocks_of(ROOT / "docs" / "how-to" / "deepspeed.md")}
    old, new = (blocks[name].source.splitlines() for name in ("with_deepspeed.py", "evaluate.py"))
    changes = [line for line in unified_diff(old, new, n=0) if not line.startswith(("---", "+++"))]
    removed = [line for line in changes if line.startswith("-")]
    added = [line for line in changes if line.startswith("+")]
    assert 0 < len(added) <= len(removed) < 10


def test_the_files_and_folders_of_the_project_that_pages_name_are_there():
    pages = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "tests" / "README.md"]
    pattern = re.compile(r"`((?:schemas|schedcc|runtime|tests|benchmarks|examples|docs)/[\w./-]+)`")
    named = {(p.name, path) for p in pages for path in pattern.findall(p.read_text("utf-8"))}
    assert len(named) > 40
    assert {(page, path) for page, path in named if not (ROOT / path).exists()} == set()
