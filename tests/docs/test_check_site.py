"""The check of the built site finds what a reader would stumble over."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "docs" / "check_site.py"
spec = importlib.util.spec_from_file_location("check_site", SCRIPT)
check_site = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check_site)


@pytest.fixture
def site(tmp_path):
    """A site of two pages without a fault."""
    (tmp_path / "guides").mkdir()
    (tmp_path / "_sources" / "guides").mkdir(parents=True)
    (tmp_path / "index.html").write_text(
        '<link rel="stylesheet" href="own.css"><link rel="canonical" href="https://fluxlike.org/">'
        '<a href="guides/jit.html#limits">jit</a> <a href="https://pytorch.org">torch</a>'
        '<img src="own.svg" alt="bars of ratios">'
    )
    (tmp_path / "guides" / "jit.html").write_text(
        '<h2 id="limits">Limits</h2><a href="../index.html">home</a>'
    )
    (tmp_path / "own.svg").write_text("<svg/>")
    (tmp_path / "own.css").write_text("a { background: url(own.svg) }")
    (tmp_path / "searchindex.js").write_text('Search.setIndex({"docnames":["guides/jit","index"]})')
    for name in ("index", "guides/jit"):
        (tmp_path / "_sources" / f"{name}.md.txt").write_text("")
    return tmp_path


def test_a_site_in_order_has_no_faults(site):
    assert check_site.faults(site) == []


@pytest.mark.parametrize(
    ("added", "fault"),
    [
        ('<a href="gone.html">x</a>', "gone.html is not there"),
        ('<a href="guides/jit.html#nowhere">x</a>', "names a place that its page does not have"),
        ('<a href="#nowhere">x</a>', "#nowhere names a place"),
        ('<img src="gone.png" alt="a curve">', "gone.png is not there"),
        ('<img src="own.svg">', "own.svg has no alt text"),
        ('<script src="https://cdn.example.org/a.js"></script>', "from another machine"),
        ('<link rel="stylesheet" href="//fonts.example.org/f.css">', "from another machine"),
    ],
)
def test_a_fault_of_a_page_is_told_with_the_page(site, added, fault):
    page = site / "index.html"
    page.write_text(page.read_text() + added)
    (found,) = check_site.faults(site)
    assert found.startswith("index.html: ")
    assert fault in found


def test_a_style_that_loads_a_font_from_elsewhere_or_a_missing_one_is_a_fault(site):
    (site / "own.css").write_text(
        "@import 'https://fonts.example.org/f.css'; a { background: url(gone.svg) }"
    )
    assert len(check_site.faults(site)) == 2


def test_a_page_that_the_search_does_not_know_is_a_fault(site):
    (site / "searchindex.js").write_text('Search.setIndex({"docnames":["index"]})')
    assert check_site.faults(site) == ["guides/jit: the search does not know it"]


def test_a_folder_without_pages_is_no_site(tmp_path):
    assert "build the site first" in check_site.faults(tmp_path)[0]
