"""What the tests of checkpoints over a mesh share."""

from __future__ import annotations

import shutil

import pytest

from tests.distributed.ranks import run
from tests.distributed.sharded_trees import saved


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """The folder of a checkpoint of three ranks, the tree in it, and model and state two steps later."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tree, later = run(saved, 3, folder, "sharded")[0]
    return folder, tree, later


@pytest.fixture
def copied(checkpoint, tmp_path):
    """A copy of the folder, to be damaged."""
    folder = tmp_path / "copied"
    shutil.copytree(checkpoint[0], folder)
    return folder
