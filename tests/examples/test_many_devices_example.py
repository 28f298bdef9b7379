"""The example of many devices: one script under torchrun and alone."""

from __future__ import annotations

import re

import pytest
from test_examples import ROOT, run

SCRIPT = str(ROOT / "examples" / "many_devices.py")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def said(text):
    """The epochs, their losses, and the accuracy in percent, which one rank alone prints."""
    epochs, losses = zip(*re.findall(r"epoch +(\d+): loss ([\d.]+)", text), strict=True)
    (accuracy,) = re.findall(r"([\d.]+)% of 359 held-out digits read right", text)
    return [*map(int, epochs)], [*map(float, losses)], float(accuracy)


@pytest.mark.slow
def test_what_two_ranks_began_under_torchrun_one_process_ends(tmp_path):
    pytest.importorskip("sklearn", reason="the example reads scikit-learn's digits")
    epochs, first, accuracy = said(run(tmp_path, *TORCHRUN, SCRIPT, "--quick", "--folder", "run"))
    assert (epochs, accuracy > 94) == ([1, 2, 3, 4], True)
    epochs, later, accuracy = said(run(tmp_path, SCRIPT, "--folder", "run"))
    assert (epochs, accuracy > 97) == ([*range(5, 16)], True)
    assert max(later) < min(first)
