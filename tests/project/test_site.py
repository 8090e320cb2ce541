"""Links of the built site are checked, in whatever it has them."""

from tests.tools.site_links import problems


def test_links_to_nothing_and_what_is_loaded_from_elsewhere_are_found(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "index.html").write_text('<h1 id="there">Folder</h1>')
    (tmp_path / "index.html").write_text(
        '<a href="folder/">1</a> <a href="folder/index.html#there">2</a> <a href="/folder/">3</a>'
        '<a href="https://elsewhere.org">4</a> <a href="#__toc">5</a> <a name="here">6</a>'
        '<a href="#here">7</a> <a href="mailto:someone@elsewhere.org">8</a>'
        '<link rel="canonical" href="https://elsewhere.org/page">'
    )
    assert problems(tmp_path) == []
    (tmp_path / "bad.html").write_text(
        '<a href="nowhere.html">1</a> <a href="folder/index.html#nowhere">2</a> <img src="no.svg">'
        '<script src="https://elsewhere.org/a.js"></script><link rel="icon" href="//else.org/i">'
    )
    assert problems(tmp_path) == [
        "bad.html loads https://elsewhere.org/a.js",
        "bad.html loads //else.org/i",
        "bad.html links to nowhere.html, which is not there",
        "bad.html links to folder/index.html#nowhere, where no such place is",
        "bad.html links to no.svg, which is not there",
    ]
