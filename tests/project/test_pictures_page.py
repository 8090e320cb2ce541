"""What `docs/how-to/pictures.md` and the README show is true."""

import re
from pathlib import Path

import schedcc
from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "how-to" / "pictures.md").read_text()


def test_the_pictures_of_the_readme_are_what_their_commands_draw(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = schedcc.compile_pipeline(4, 3).model_dump()
    steps = plan["programs"][1]["steps"]
    plan["programs"][1]["steps"] = [steps[0], steps[2], steps[1], *steps[3:]]
    Path("broken.json").write_text(schedcc.PipelinePlan(**plan).model_dump_json())
    readme = " ".join((ROOT / "README.md").read_text().split())
    commands = re.findall(r"`schedcc ([^`]*--svg) ([a-z]+.svg)`", readme)
    assert [name for _, name in commands] == re.findall(r"docs/images/([a-z]+.svg)", readme)
    assert len(commands) == 3
    for words, name in commands:
        assert run(*words.split(), name).status == 0
        assert Path(name).read_text() == (ROOT / "docs" / "images" / name).read_text()
    assert "blocking takes 15.5 s, overlapped 11.75 s" in readme
    drawn = Path("overlap.svg").read_text()
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
