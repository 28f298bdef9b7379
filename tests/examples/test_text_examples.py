"""Every example of texts runs in its quick form, and does better than what knows nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from test_examples import ROOT, run

#: What each prints of what it found and what it is compared with.
SAID = {
    "char_rnn": r"([\d.]+) bits a letter; by the frequencies of letters alone it would take ([\d.]+)",
    "nano_gpt": r"([\d.]+) bits a held-out letter, after \d+ s\nby the frequencies .* take ([\d.]+)",
    "seq2seq": r"step  150: loss [\d.]+, ([\d.]+)% of the held-out dates right",
    "recursive": r"([\d.]+)% of deeper trees; the same answer to all would be right in ([\d.]+)%",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SAID)
def test_an_example_of_texts_learns(name: str, tmp_path: Path):
    said = run(tmp_path, str(ROOT / "examples" / f"{name}.py"), "--quick")
    found, *baseline = map(float, re.search(SAID[name], said).groups())
    if name in ("char_rnn", "nano_gpt"):
        assert found < 0.8 * baseline[0]
    else:
        assert found > max([50, *baseline])
    assert not list(tmp_path.iterdir())
