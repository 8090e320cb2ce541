"""The build backend: setuptools, and one more file in the wheel.

lm-evaluation-harness 0.4.13 looks models up in a registry that nothing outside its process can
enter: it reads no entry points. So the wheel has a `.pth` file beside the packages, which Python
reads when it starts (https://docs.python.org/3/library/site.html). It does nothing unless the
command is `lm_eval`; then it enters the model `schedcc` into the registry.
"""

import base64
import hashlib
import os
import zipfile
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

FILE = "schedcc_lm_eval.pth"
CONTENT = (
    "import sys; "
    "any('lm_eval' in word or 'lm-eval' in word for word in sys.orig_argv[:4]) and "
    "__import__('runtime.language.harness', fromlist=['register']).register()\n"
)


def build_wheel(directory: str, *arguments: Any, **options: Any) -> str:
    """Build a wheel."""
    return _with_file(directory, build_meta.build_wheel(directory, *arguments, **options))


def build_editable(directory: str, *arguments: Any, **options: Any) -> str:
    """Build a wheel that refers to this folder."""
    return _with_file(directory, build_meta.build_editable(directory, *arguments, **options))


def _with_file(directory: str, name: str) -> str:
    """Add the file to a wheel, and to the wheel's record of its files."""
    wheel = Path(directory, name)
    changed = wheel.with_suffix(".new")
    digest = base64.urlsafe_b64encode(hashlib.sha256(CONTENT.encode()).digest()).rstrip(b"=")
    record = f"{FILE},sha256={digest.decode()},{len(CONTENT)}\n"
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(changed, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            content = old.read(entry)
            if entry.filename.endswith(".dist-info/RECORD"):
                content = record.encode() + content
            new.writestr(entry, content)
        new.writestr(FILE, CONTENT)
    os.replace(changed, wheel)
    return name
