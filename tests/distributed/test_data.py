"""DataLoader over a mesh: n ranks read what one process reads, each its own rows."""

import itertools
import multiprocessing
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

import fluxlike as fl
from fluxlike.data.share import share_of
from fluxlike.placement.mesh.parts import part_of
from tests.distributed.ranks import RankError, run

pytestmark = pytest.mark.slow  # processes take a while to start and to meet

ROWS, SIZE = 37, 8  # batches of 8, and one of 5, which no two or three ranks can share


class Samples:
    """Rows by number, which notes what was read."""

    def __init__(self):
        self.read = []

    def __len__(self):
        return ROWS

    def __getitem__(self, i):
        self.read.append(int(i))
        return torch.tensor([float(i)]), int(i)


class Augmented(Samples):
    """Rows with draws of every kind, more of them for some rows."""

    def __getitem__(self, i):
        _, label = super().__getitem__(i)
        torch.rand(int(i) % 3)
        drawn = [random.random(), np.random.rand(), torch.rand(()).item()]
        return torch.tensor([float(i), *drawn, *fl.random.uniform((2,)).tolist()]), label


class Together(Augmented):
    def __getitems__(self, rows):
        return [self[i] for i in rows]


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return ((torch.tensor([i + random.random()]), i) for i in range(ROWS))


def mixed(batch):
    """Looks at all rows of a batch."""
    x, y = batch
    return x + x[torch.randperm(len(x))], y, y.sum(), torch.arange(3.0)


def padded(samples):
    """As long as the largest number of the batch."""
    x = torch.zeros(len(samples), 1 + max(label for _, label in samples))
    for row, (_, label) in zip(x, samples, strict=True):
        row[:label] = 1
    return {"x": x, "lengths": torch.tensor([label for _, label in samples])}


def loader(name, device=None, workers=0, key=True):
    x = torch.arange(2.0 * ROWS).reshape(ROWS, 2)
    options = {"key": fl.Key(1)} if key else {}
    options |= {"device": device, "workers": workers, "shuffle": True}
    if name == "arrays":
        return fl.DataLoader((x, torch.arange(ROWS)), SIZE, **options)
    if name == "in order":
        options = {"device": device, "partial": False}
        return fl.DataLoader({"x": x, "again": x}, SIZE, **options)
    if name == "transform":
        return fl.DataLoader((x, torch.arange(ROWS)), SIZE, transform=mixed, **options)
    if name == "stream":
        return fl.DataLoader(Stream(), SIZE, **{**options, "shuffle": 5})
    if name == "collate":
        return fl.DataLoader(Samples(), SIZE, collate=padded, **options)
    return fl.DataLoader(
        {"samples": Samples, "augmented": Augmented, "together": Together}[name](), SIZE, **options
    )


NAMES = ["arrays", "in order", "transform", "stream", "collate", "samples", "augmented", "together"]


def over_all(axes=("data",)):
    n = dist.get_world_size()
    shape = (n,) if len(axes) == 1 else (n // 2, 2)
    return init_device_mesh("cpu", shape, mesh_dim_names=axes)


def described(batches):
    """Batches, whole, and of each tensor how many rows this rank had."""
    rows = [[x.to_local().shape[:1] for x in fl.fleaves(b) if isinstance(x, DTensor)] for b in batches]
    return fl.cpu(batches), rows


def epochs_of(names, workers, axes=("data",)):
    mesh, before = over_all(axes), multiprocessing.get_start_method()
    # The processes of a pool are daemons, which may have no children, and would spawn them, which takes long.
    multiprocessing.current_process()._config["daemon"] = False
    multiprocessing.set_start_method("fork", force=True)
    try:
        return {name: described(list(loader(name, mesh, workers).epoch(1))) for name in names}
    finally:
        multiprocessing.set_start_method(before, force=True)


def equal(a, b):
    pairs = list(zip(fl.fleaves(a), fl.fleaves(b), strict=True))
    return all(torch.equal(p, q) if isinstance(p, torch.Tensor) else p == q for p, q in pairs)


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_see_the_batches_of_one_process(ranks):
    found = run(epochs_of, ranks, NAMES, 0)
    for name in NAMES:
        alone = list(loader(name).epoch(1))
        for of_rank in found:
            batches, rows = of_rank[name]
            assert len(batches) == len(alone)
            assert all(equal(a, b) for a, b in zip(batches, alone, strict=True)), name
            first = (SIZE // ranks,) if SIZE % ranks == 0 else (SIZE,)
            assert rows[0][0] == first
            if name != "in order":
                assert rows[-1][0] == (ROWS % SIZE,)


def test_workers_give_each_rank_the_same_rows():
    names = ["samples", "augmented", "transform", "collate", "stream"]
    for of_rank in run(epochs_of, 2, names, 1):
        for name in names:
            assert equal(of_rank[name][0], list(loader(name).epoch(1))), name


def test_ranks_that_share_a_model_read_the_same_rows():
    alone = list(loader("augmented").epoch(1))
    for of_rank in run(epochs_of, 4, ["augmented"], 0, ("data", "model")):
        batches, rows = of_rank["augmented"]
        assert rows[0] == [(SIZE // 2,), (SIZE // 2,)]
        assert equal(batches, alone)


def test_over_two_axes_of_data_a_rank_reads_the_rows_that_shard_batch_leaves_it():
    rows = torch.arange(12)
    for place in itertools.product(range(2), range(3)):
        mesh = SimpleNamespace(
            ndim=2,
            mesh_dim_names=("machine", "data"),
            size=(2, 3).__getitem__,
            get_local_rank=place.__getitem__,
        )
        own = part_of(rows, mesh, [Shard(0), Shard(0)])
        assert (
            share_of(mesh).narrowed(rows).tolist()
            == own.tolist()
            == rows[2 * (3 * place[0] + place[1]) :][:2].tolist()
        )


def read_by(name):
    made = loader(name, over_all())
    batches = made.epoch(0)
    next(batches), next(batches)
    return made._source.data.read


@pytest.mark.parametrize(("name", "again"), [("samples", 0), ("augmented", 1)])
def test_a_rank_reads_its_own_rows_alone(name, again):
    alone = [y.tolist() for _, y in loader(name).epoch(0)][:2]
    for rank, read in enumerate(run(read_by, 2, name)):
        own = [i for batch in alone for i in batch[4 * rank : 4 * rank + 4]]
        assert read[again:] == own  # a data set that draws is found out at the first row


def without_a_key():
    torch.manual_seed(dist.get_rank())
    made = loader("samples", over_all(), key=False)
    first, second = list(made), list(made)
    return [[y.full_tensor().tolist() for _, y in batches] for batches in (first, second)], torch.rand(
        ()
    ).item()


def test_without_a_key_all_ranks_take_the_order_of_the_first():
    found = run(without_a_key, 2)
    torch.manual_seed(0)
    made = loader("samples", key=False)
    alone = [[y.tolist() for _, y in made] for _ in range(2)]
    assert found[0][0] == found[1][0] == alone
    assert alone[0] != alone[1]


def with_keys_that_differ():
    next(
        iter(fl.DataLoader(torch.arange(8), 4, shuffle=True, key=fl.Key(dist.get_rank()), device=over_all()))
    )


def with_data_that_differs():
    next(iter(fl.DataLoader(torch.arange(8 + dist.get_rank()), 4, device=over_all())))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (with_keys_that_differ, "rank 0 and rank 1 would read other rows.*key=fluxlike.Key"),
        (with_data_that_differs, "the number of observations is 8 on rank 0 and 9 on rank 1"),
    ],
)
def test_loaders_that_differ_from_rank_to_rank_are_refused(function, message):
    with pytest.raises(RankError) as error:
        run(function, 2)
    assert error.match("(?s)" + message)


def begun(name, taken):
    made = loader(name, over_all())
    batches = iter(made)
    for _ in range(taken):
        next(batches)
    return made.state_dict()


def gone_on_with(name, state):
    made = loader(name, over_all())
    made.load_state_dict(state)
    return fl.cpu(list(made)), fl.cpu(next(iter(made)))


@pytest.mark.parametrize("name", ["arrays", "augmented", "stream"])
def test_an_epoch_goes_on_exactly_on_another_number_of_ranks(name):
    state = run(begun, 2, name, 2)[1]
    epoch, following = list(loader(name).epoch(0)), next(loader(name).epoch(1))
    alone = loader(name)
    alone.load_state_dict(state)
    rest = [(list(alone), next(iter(alone))), *run(gone_on_with, 3, name, state)]
    for batches, then in rest:
        assert equal(batches, epoch[2:])
        assert equal(then, following)


def batch_shapes():
    from fluxlike.placement.mesh.place import batch_of_rows, shard_batch

    mesh, x = over_all(), torch.arange(12.0).reshape(6, 2)
    rank = dist.get_rank()
    made = batch_of_rows({"x": x[3 * rank : 3 * rank + 3], "all": x, "mean": x.mean()}, mesh, 6)
    theirs = shard_batch({"x": x}, mesh)["x"]
    assert type(made["x"]) is type(theirs)
    assert made["x"].placements == theirs.placements
    assert made["x"].shape == theirs.shape == (6, 2)
    assert made["x"].stride() == theirs.stride()
    assert torch.equal(made["x"].full_tensor(), x)
    assert made["all"].placements == made["mean"].placements != theirs.placements
    with pytest.raises(
        ValueError, match=r"\['x'\] has 2 rows on this rank; of a batch of 6 rows over 2 ranks.* 3"
    ):
        batch_of_rows({"x": x[:2]}, mesh, 6)


def test_batch_of_rows_is_what_shard_batch_makes():
    run(batch_shapes, 2)
