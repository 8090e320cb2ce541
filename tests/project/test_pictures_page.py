"""What `docs/how-to/pictures.md` and the README show is true."""

import re

from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "how-to" / "pictures.md").read_text()


def test_the_breakdown_is_what_the_command_prints(run):
    (words, shown) = re.findall(r"```\n\$ schedcc (breakdown .*)\n([^`]*)```", PAGE)[0]
    assert run(*words.split()).out == shown


def test_the_picture_of_the_readme_is_what_its_command_draws(run, tmp_path):
    readme = " ".join((ROOT / "README.md").read_text().split())
    ((words, name),) = re.findall(r"`schedcc (compare [^`]*--svg) (overlap.svg)`", readme)
    assert f"docs/images/{name}" in readme
    assert run(*words.split(), tmp_path / name).status == 0
    drawn = (tmp_path / name).read_text()
    assert drawn == (ROOT / "docs" / "images" / name).read_text()
    assert "blocking takes 15.5 s, overlapped 11.75 s" in readme
    assert "predicted: 15.5 s" in drawn
    assert "predicted: 11.75 s" in drawn


def test_the_pictures_of_the_page_are_there():
    names = re.findall(r"!\[[^]]+\]\(\.\./(images/[^)]+)\)", PAGE)
    assert len(names) == 2
    assert all((ROOT / "docs" / name).stat().st_size < 100_000 for name in names)


def test_the_limits_are_those_of_the_code():
    from schedcc.pictures import notebook
    from schedcc.pictures.page import MOST_BOXES
    from schedcc.pictures.svg import MOST_DRAWN

    assert f"up to {MOST_BOXES:,} instructions, an SVG up to {MOST_DRAWN:,}." in PAGE
    assert f"shown up to {notebook.MOST_SHOWN:,} instructions" in PAGE
