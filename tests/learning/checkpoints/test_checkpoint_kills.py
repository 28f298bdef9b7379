"""A run that is killed at any instant leaves whole checkpoints, and nothing else after the next opening."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="processes are forked and killed by a signal")


def killed(how, folder, count=0, seed=0):
    script = Path(__file__).with_name("killed_saves.py")
    run = subprocess.run(
        [sys.executable, script, how, folder, str(count), str(seed)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_killed_before_each_call_to_the_system_the_newest_whole_one_is_found(tmp_path):
    found = killed("calls", tmp_path)
    assert found["kills"] > 10
    assert found["removed"] > 3


def test_killed_at_random_instants_every_checkpoint_is_whole_and_equal(tmp_path):
    assert killed("instants", tmp_path, 20, 0)["kills"] == 20


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 4))
def test_killed_many_times_every_checkpoint_is_whole_and_equal(tmp_path, seed):
    assert killed("instants", tmp_path, 150, seed)["removed"] > 0
