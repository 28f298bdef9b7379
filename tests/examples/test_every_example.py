"""No example is left out: of the tests that run them, and of the page that lists them."""

from __future__ import annotations

import re

import test_generative_examples
import test_science_examples
import test_text_examples
from test_examples import QUICK, ROOT

SCRIPTS = {path.stem: path.read_text() for path in (ROOT / "examples").glob("*.py")}
EXAMPLES = {name for name, code in SCRIPTS.items() if "__main__" in code}
RUN = [
    *QUICK,
    "finetune",
    "many_devices",
    *test_generative_examples.SAID,
    *test_science_examples.PACKAGES,
    *test_text_examples.SAID,
]


def test_every_example_is_run_by_one_test():
    assert sorted(RUN) == sorted(EXAMPLES)


def test_what_is_no_example_is_imported_by_one():
    imported = {name for code in SCRIPTS.values() for name in re.findall(r"^from (\w+) import", code, re.M)}
    assert set(SCRIPTS) - EXAMPLES <= imported


def test_every_example_is_in_the_documentation():
    page = (ROOT / "docs" / "gallery.md").read_text()
    assert set(re.findall(r"^:link: .*/examples/(\w+)\.py$", page, re.M)) == EXAMPLES
    assert set(re.findall(r"^:img-top: pictures/gallery/(\w+)\.png$", page, re.M)) == EXAMPLES
    assert page.count(":img-alt: ") == len(EXAMPLES)
