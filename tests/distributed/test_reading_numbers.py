"""What Python reads of a tensor over a mesh is read of the whole, alike on every rank."""

import pytest
import torch

from fluxlike import distributed as d
from tests.distributed.ranks import run

READ = {
    "item": lambda y: y.sum().item(),
    "int": lambda y: int(y.min()),
    "float": lambda y: float(y.mean()),
    "bool": lambda y: bool((y > 1).all()),
    "bool of the largest": lambda y: bool(y.max() > 5),
    "tolist": lambda y: y.tolist(),
    "numpy": lambda y: y.numpy().sum().item(),
    "equal": lambda y: torch.equal(y, y + 0),
    "allclose": lambda y: torch.allclose(y, y + 1e-12),
    "contains": lambda y: 3 in y,
    "complex": lambda y: complex(y.sum()),
    "index": lambda y: range(10)[y.min().long()],
}


def read(name):
    plain = torch.arange(1.0, 7.0)
    over = d.shard_batch(plain, d.mesh())
    return READ[name](over), READ[name](plain)


@pytest.mark.parametrize("name", READ)
def test_every_rank_reads_the_number_of_the_whole(name):
    for found, expected in run(read, 2, name):
        assert found == expected
