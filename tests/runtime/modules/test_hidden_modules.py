"""Another module called `schemas` or `runtime` that comes first on the path is told by its file."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT


def python(code: str, first: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(first), str(ROOT)])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=first,
    )


def another(tmp_path: Path, name: str, package: bool) -> Path:
    file = tmp_path / (f"{name}/__init__.py" if package else f"{name}.py")
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine = True\n")
    return file


@pytest.mark.parametrize("package", [False, True])
@pytest.mark.parametrize(
    "code", ["import schedcc", "import runtime", "import schemas, schedcc", "import schedcc.cli"]
)
def test_a_module_that_hides_schemas_is_one_sentence_that_names_its_file(tmp_path, package, code):
    file = another(tmp_path, "schemas", package)
    done = python(code, tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: {file} hides the module 'schemas' of schedcc: rename it, or take its folder "
        "off sys.path"
    )


@pytest.mark.parametrize("package", [False, True])
def test_the_compiler_works_beside_another_runtime_and_warns_of_it(tmp_path, package):
    file = another(tmp_path, "runtime", package)
    done = python("import schedcc; print(schedcc.check_schedule(2, 2).ok)", tmp_path)
    assert (done.returncode, done.stdout) == (0, "True\n")
    assert f"UserWarning: {file} hides the module 'runtime' of schedcc: rename it" in done.stderr


def test_modules_of_the_same_name_that_do_not_come_first_are_not_in_the_way(tmp_path):
    (tmp_path / "runtime").mkdir()  # a folder that is no package
    (tmp_path / "schemas").mkdir()
    (tmp_path / "schemas" / "plan.json").write_text("{}")
    done = python("import schedcc, runtime; print(runtime.__name__)", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "runtime\n", "")
