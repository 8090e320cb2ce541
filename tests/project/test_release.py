"""What is released: a wheel of the three packages, and an archive of sources with its tests."""

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path, PurePosixPath
from sysconfig import get_paths

import pytest

from schedcc import __version__
from tests.support.paths import ROOT

PACKAGES = ("schemas", "schedcc", "runtime")
NOT_COPIED = shutil.ignore_patterns(
    ".git", ".venv", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis"
)
pytestmark = pytest.mark.slow


def output(*command: object, stdin: str = "") -> str:
    """What a command prints that finds no package of ours in the folder or by the environment."""
    done = subprocess.run(
        [*map(str, command)],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=Path(sys.executable).parent,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return shutil.copytree(ROOT, tmp_path_factory.mktemp("of") / "source", ignore=NOT_COPIED)


@pytest.fixture(scope="module")
def built(source) -> Path:
    """The directory of the wheel, which is built from the archive."""
    output(sys.executable, "-m", "build", "--no-isolation", "--outdir", source / "dist", source)
    return source / "dist"


def files_of(source: Path, *folders: str) -> set[str]:
    files = (file for folder in folders for file in (source / folder).rglob("*"))
    kept = (file for file in files if file.is_file() and file.suffix != ".pyc")
    return {file.relative_to(source).as_posix() for file in kept}


def test_the_wheel_holds_the_three_packages_and_nothing_else(source, built):
    with zipfile.ZipFile(built / f"schedcc-{__version__}-py3-none-any.whl") as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        metadata = wheel.read(f"schedcc-{__version__}.dist-info/METADATA").decode()
    assert names == files_of(source, *PACKAGES) | {"schedcc_lm_eval.pth"}
    for line in ("License-Expression: Apache-2.0", "License-File: LICENSE", "Requires-Dist: numpy"):
        assert f"\n{line}" in metadata


def test_the_archive_of_sources_holds_all_that_its_tests_need(source, built):
    with tarfile.open(built / f"schedcc-{__version__}.tar.gz") as archive:
        found = {str(PurePosixPath(*PurePosixPath(name).parts[1:])) for name in archive.getnames()}
    folders = ("tests", "docs", "examples", "benchmarks", "build_backend", *PACKAGES)
    assert not files_of(source, *folders) - found
    beside = {file.name for file in source.iterdir() if file.is_file() and file.name[0] != "."}
    assert not beside - found


def test_the_wheel_works_alone_and_says_what_its_runtime_needs(built, tmp_path):
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet")
    output(*pip, "--no-deps", "--no-index", *built.glob("*.whl"))
    purelib = output(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    # Dependencies are those of this environment; what is editable there is not found this way.
    Path(purelib, "dependencies.pth").write_text(get_paths()["purelib"] + "\n")
    schedcc = python.with_name("schedcc")
    assert output(python, "-c", "import schedcc; print(schedcc.__file__)").startswith(purelib)
    assert output(schedcc, "--version") == f"{__version__}\n"
    plan = output(schedcc, "compile", "-M", 4, "-S", 2)
    assert output(schedcc, "check", "-", stdin=plan).startswith("standard input: sound (")
    light = """
import sys
sys.modules["torch"] = None  # importing it now fails
import runtime, runtime.language.progress, runtime.language.extras
try:
    runtime.Evaluator
except ModuleNotFoundError as error:
    print(error)
"""
    said = "runtime.Evaluator needs torch: pip install 'schedcc[runtime]' brings it\n"
    assert output(python, "-c", light) == said
