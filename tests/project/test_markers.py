"""Tests can be chosen by the markers that pyproject.toml declares, as tests/README.md says."""

import tomllib

from tests.support.paths import ROOT


def test_markers_are_declared_and_what_they_do_is_said():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    options = project["tool"]["pytest"]["ini_options"]
    assert "--strict-markers" in options["addopts"]  # no other is used
    declared = dict(line.split(": ") for line in options["markers"])
    text = " ".join((ROOT / "tests" / "README.md").read_text(encoding="utf-8").split())
    assert [*declared] == ["nccl", "slow", "hosts"]
    assert "marked `nccl` run where there are two GPUs" in text
    assert '`pytest -m "not slow"` leaves out what ' + declared["slow"] in text
