"""``torchrun -m fluxlike train``: the ranks train one model together, and end together."""

import pytest
import torch
from training_runs import iris

import fluxlike as fl
from fluxlike.command.main import main
from fluxlike.command.model_file import read_model
from tests.distributed.scripts import Starter

pytestmark = pytest.mark.slow  # processes take a while to start and to meet

TRAIN = """
import sys
from fluxlike.command import train
from fluxlike.command.main import main
from fluxlike.distributed.launch import rank
{before}
sys.exit(main(["train", {path!r}]))
"""


@pytest.fixture(scope="module")
def starter(tmp_path_factory):
    starter = Starter(tmp_path_factory.mktemp("ranks"))
    yield starter
    starter.close()


def trained(starter, path, before=""):
    return starter.run(TRAIN.format(path=path, before=before), 2)


def test_two_ranks_train_the_model_of_one_process(starter, tmp_path, capsys):
    first, second = trained(starter, iris(tmp_path, "two", epochs=2))
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert (second.out, second.err) == ("", "")
    assert "in float32 on 2 ranks of cpu" in first.out
    assert main(["train", iris(tmp_path, "one", epochs=2)]) == 0
    assert first.out.count("\n") == capsys.readouterr().out.count("\n")
    files = [sorted(file.name for file in (tmp_path / run).iterdir()) for run in ("one", "two")]
    assert files[0] == files[1]
    models = [read_model(tmp_path / run / "model.safetensors")[1] for run in ("one", "two")]
    for a, b in zip(*map(fl.trainables, models), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_an_error_on_one_rank_ends_the_command_on_all(starter, tmp_path):
    before = """
def fail(*_):
    raise ValueError("iris.csv has no column target")

if rank() == 1:
    train.task_of = fail
"""
    first, second = trained(starter, iris(tmp_path, epochs=2), before)
    assert (first.code, second.code) == (1, 1)
    assert second.err == "fluxlike train: iris.csv has no column target\n"
    assert first.err == "rank 0 ends: rank 1 failed: ValueError: iris.csv has no column target\n"
    assert max(first.seconds, second.seconds) < 250  # a rank that was not told is killed after 300
