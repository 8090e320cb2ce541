"""Every block of code and every command of the pages runs, and prints what the page shows."""

import io
import json
import re
import tomllib
from collections import Counter
from contextlib import chdir, redirect_stdout
from doctest import ELLIPSIS, OutputChecker
from pathlib import Path
from typing import Any

import pytest

from tests.docs.blocks import PAGES, SHOWN, Block, blocks_of
from tests.docs.commands import run
from tests.support.paths import ROOT
from tests.support.tiny_models import saved_llama

NOT_RUN = {
    "it changes the shell that you type in": 1,
    "it downloads a data set": 3,
    "it installs packages": 1,
    "it makes an environment, and takes minutes": 2,
    "it needs GPUs": 2,
    "it needs Slurm": 1,
    "it needs root, and is run by the tests marked hosts": 1,
    "it needs two hosts": 3,
    "it takes minutes": 1,
    "it takes minutes, and mostly a GPU": 1,
    "make test runs these tests, where they can run": 1,
}
"""Reasons why blocks are not run, and how many there are of each."""


def same(shown: str, printed: str) -> bool:
    """Whether this was printed, where `...` stands for anything; how many spaces does not count."""
    shown, printed = (
        "".join(f"{' '.join(line.split())}\n" for line in text.strip("\n").splitlines()) or "\n"
        for text in (shown, printed)
    )
    return OutputChecker().check_output(shown, printed, ELLIPSIS)


def demand(block: Block, shown: str, printed: str) -> None:
    assert same(shown, printed), f"{block} shows\n{shown}\nand this is printed:\n{printed}"


def run_console(block: Block, folder: Path) -> None:
    """Each command, and what is below it."""
    parts = re.split(r"^\$ ", block.source, flags=re.MULTILINE)
    assert not parts[0], f"{block}: a block of commands begins with one"
    for number, part in enumerate(parts[1:], 2):
        found = re.match(r"((?:[^\n]*\\\n)*[^\n]*)\n?(.*)", part, re.DOTALL)
        assert found
        command, shown = found[1].replace("\\\n", ""), found[2]
        done = run(command, folder)
        status = block.exit_status if number == len(parts) else 0
        said = f"{block}: {command} ended with {done.status}:\n{done.out}{done.err}"
        assert done.status == status, said
        demand(block, shown, done.out + (done.err if status else ""))


def run_python(block: Block, names: dict[str, Any], shown: str) -> None:
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(compile("\n" * block.line + block.source, ROOT / block.page, "exec"), names)
    demand(block, shown, printed.getvalue())


def with_code() -> list[Any]:
    """The pages that have blocks; those that run SmolLM2 or the harness are slow."""
    slow = re.compile(r"^\$ (pipeval --model smollm2|lm_eval) ", re.MULTILINE)
    return [
        pytest.param(
            page,
            id=str(page.relative_to(ROOT)),
            marks=[pytest.mark.slow] if slow.search(page.read_text()) else [],
        )
        for page in PAGES
        if blocks_of(page)
    ]


@pytest.mark.parametrize("page", with_code())
def test_the_code_of_a_page_runs_and_prints_what_it_shows(page, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    blocks = blocks_of(page)
    names: dict[str, Any] = {"__name__": "page"}
    if "my-model" in page.read_text():
        saved_llama(tmp_path / "my-model")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    with chdir(tmp_path):
        for block, after in zip(blocks, [*blocks[1:], None], strict=True):
            if block.file:
                Path(block.file).write_text(block.source)
            elif block.not_run:
                continue
            elif block.language == "console":
                run_console(block, tmp_path)
            elif block.language == "python":
                printed = after is not None and after.language == "text" and after.below
                run_python(block, names, after.source if printed and after else "")


def test_blocks_have_a_language_and_data_can_be_read():
    for block in (block for page in PAGES for block in blocks_of(page)):
        assert block.language in {"python", "console"} | SHOWN, f"{block} has no language"
        if block.language == "json":
            json.loads(block.source)
        if block.language == "toml":
            tomllib.loads(block.source)


def test_what_is_not_run_is_known():
    blocks = [block for page in PAGES for block in blocks_of(page)]
    assert Counter(block.not_run for block in blocks if block.not_run) == NOT_RUN
