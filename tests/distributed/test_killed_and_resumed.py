"""A run that is killed on three ranks goes on on two, and then in one process, as if it had never stopped."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fluxlike as fl
from fluxlike import distributed as d
from tests.distributed import resumed_run
from tests.distributed.ranks import run
from tests.distributed.scripts import Starter

pytestmark = pytest.mark.slow  # processes take a while to start and to meet

# Steps, each in the middle of an epoch of five: of the kill and the second end, and of checkpoints before.
KILLED, LEFT = 8, 13
AT_KILL, AT_END = 6, 12


def killed_under_torchrun(kind, folder, tmp_path):
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3")
    ended = subprocess.run(
        [*torchrun, resumed_run.__file__, kind, folder, "kill", str(KILLED)],
        capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ended.returncode == 1
    assert "rank      : 1 (local_rank: 1)\n  exitcode  : -9 " in ended.stderr


def killed_without_torchrun(kind, folder, tmp_path):
    starter = Starter(tmp_path)
    script = f"from resumed_run import main\nmain({kind!r}, {str(folder)!r}, 'kill', {KILLED})"
    ended = starter.run(script, 3)
    starter.close()
    assert [rank.code for rank in ended] == [1, -9, 1]
    assert all(f"rank {i} ends: rank 1 " in ended[i].err for i in (0, 2))


def left(kind, folder):
    with pytest.raises(SystemExit):
        resumed_run.train(kind, folder, d.mesh(), ("exit", LEFT))


def losses(folder):
    """Pairs of step and loss, those of steps that were done again too."""
    rows = map(json.loads, Path(folder, "losses.jsonl").read_text().splitlines())
    return [(row["step"], row["loss"]) for row in rows]


@pytest.mark.parametrize(
    ("kind", "killed"), [("steps", killed_under_torchrun), ("fit", killed_without_torchrun)]
)
def test_a_rank_is_killed_and_the_run_goes_on_on_fewer_ranks_as_if_it_had_not_been(kind, killed, tmp_path):
    folder = tmp_path / "run"
    killed(kind, folder, tmp_path)
    done = len(losses(folder))
    run(left, 2, kind, folder)
    again = len(losses(folder))
    model = resumed_run.train(kind, folder)

    whole = resumed_run.train(kind, tmp_path / "whole")
    wanted = dict(losses(tmp_path / "whole"))
    found = losses(folder)
    assert [step for step, _ in found[done:again]] == [*range(AT_KILL, LEFT)]
    assert [step for step, _ in found[again:]] == [*range(AT_END, len(wanted))]
    assert found == [(step, pytest.approx(wanted[step], rel=0, abs=1e-10)) for step, _ in found]
    assert fl.tree.allclose(model, whole, rtol=0, atol=1e-10)
