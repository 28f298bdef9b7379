"""What a loader reads, and what it refuses."""

from __future__ import annotations

import json
import re
import tracemalloc

import numpy as np
import pytest
import torch
from data_fixtures import Noisy, NoisyStream, Skipping, Troubled
from torch.utils.data import Subset

import fluxlike as fl
from fluxlike.data.mapped import mapobs


def test_a_data_set_of_torch_is_read_as_by_torch():
    x, y = torch.randn(7, 3), torch.arange(7)
    data = torch.utils.data.TensorDataset(x, y)
    for ours, theirs in zip(fl.DataLoader(data, 3), torch.utils.data.DataLoader(data, 3), strict=True):
        assert all(map(torch.equal, ours, theirs))


def test_getitems_is_used_where_there_is_one():
    class Batched(Noisy):
        def __getitems__(self, rows):
            asked.append(rows)
            return [10 * i for i in rows]

    asked = []
    assert [b.tolist() for b in fl.DataLoader(Batched(3), 2)] == [[0, 10], [20]]
    assert asked == [[0, 1], [2]]


@pytest.mark.parametrize(
    ("found", "text"),
    [
        ({"x": [1, 2]}, "TypeError: found a dict; return a list of samples"),
        (([1, 2], [3, 4]), "TypeError: found a tuple; return a list of samples"),
        ([1], "ValueError: found 1 samples for 2 observations"),
        ([1, 2, 3], "ValueError: found 3 samples for 2 observations"),
        (None, "TypeError: 'NoneType' object is not iterable"),
    ],
    ids=["dict", "tuple", "fewer", "more", "nothing"],
)
def test_getitems_must_give_a_sample_for_each_observation(found, text):
    class Batched(Noisy):
        def __getitems__(self, rows):
            return found

    text = rf"epoch 0, batch 0: __getitems__ of 2 observations \(0, 1\) raised {text}"
    with pytest.raises(RuntimeError, match=text):
        list(fl.DataLoader(Batched(4), 2))


def test_an_error_of_getitems_names_the_first_observations_and_how_many():
    class Batched(Noisy):
        def __getitems__(self, rows):
            raise OSError("gone")

    with pytest.raises(RuntimeError) as error:
        list(fl.DataLoader(Batched(2000), 1024))
    assert str(error.value) == (
        "epoch 0, batch 0: __getitems__ of 1024 observations (0, 1, 2, 3, 4, …) raised OSError: gone"
    )


def test_an_error_of_a_part_names_the_observation_there_and_in_the_whole():
    part = Subset(Subset(Troubled("raise"), [1, 7, 2]), [2, 0, 1])
    told = "observation 2 (of the Troubled behind the Subset 7) raised KeyError: 'seven'"
    with pytest.raises(RuntimeError, match=re.escape(told)):
        list(fl.DataLoader(part, 3))


def test_a_part_of_a_data_set_with_getitems_uses_it():
    class Batched(Noisy):
        def __getitems__(self, rows):
            return [10 * i for i in rows]

    assert [b.tolist() for b in fl.DataLoader(Subset(Batched(9), [8, 1, 2]), 2)] == [[80, 10], [20]]


def unusual(kind):
    x = np.arange(12.0, dtype=np.float32).reshape(6, 2)
    if kind == "read-only":
        x.flags.writeable = False
    elif kind == "backwards":
        x = x[::-1]
    elif kind == "other byte order":
        x = x.astype(x.dtype.newbyteorder())
    elif kind == "odd steps":
        packed = np.zeros(6, [("a", "u1"), ("x", "f4", 2)])
        packed["x"], x = x, packed["x"]
    elif kind == "unaligned":
        packed = np.zeros(6, [("a", "u1"), ("x", "f4", 2), ("b", "u1", 3)])
        packed["x"], x = x, packed["x"]
    elif kind == "one row for all":
        x = np.broadcast_to(x[1], (6, 2))
    return x


@pytest.mark.parametrize("transform", [None, lambda b: b], ids=["sliced", "transformed"])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(
    "kind", ["read-only", "backwards", "other byte order", "odd steps", "unaligned", "one row for all"]
)
def test_arrays_that_torch_cannot_share_are_copied_batch_by_batch(kind, shuffle, transform):
    x = unusual(kind)
    before = x.copy()
    rows, batches = [], fl.DataLoader((x, np.arange(6)), 4, shuffle=shuffle, transform=transform)
    for batch, i in batches:
        assert batch.dtype == torch.float32
        assert np.array_equal(batch.numpy(), before[i.numpy()])
        batch.zero_()  # memory of its own
        rows += i.tolist()
    assert sorted(rows) == list(range(6))
    assert np.array_equal(x, before)


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_memory_map_is_read_a_batch_at_a_time(tmp_path, shuffle):
    file = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (1 << 14, 256))  # 16 MiB
    file[:, 0] = np.arange(1 << 14)
    file.flush()
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    tracemalloc.start()
    try:
        loader = fl.DataLoader(x, 32, shuffle=shuffle)
        seen = [i for batch in loader for i in batch[:, 0].tolist()]
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    assert sorted(seen) == list(range(1 << 14))
    assert shuffle == (seen != sorted(seen))


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.uint64], ids=lambda d: d.__name__)
@pytest.mark.parametrize("shape", [(5,), (5, 1)], ids=str)
@pytest.mark.parametrize("transform", [None, lambda b: b], ids=["sliced", "transformed"])
def test_numbers_of_rare_dtypes_are_shuffled(dtype, shape, transform):
    x = np.arange(5, dtype=dtype).reshape(shape)
    batches = list(fl.DataLoader(x, 2, shuffle=True, key=fl.Key(0), transform=transform))
    assert [tuple(b.shape) for b in batches] == [(2, *shape[1:]), (2, *shape[1:]), (1, *shape[1:])]
    assert all(b.dtype == torch.from_numpy(x).dtype for b in batches)
    assert sorted(i for b in batches for i in b.flatten().tolist()) == list(range(5))


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
def test_sparse_arrays_are_refused_at_once():
    for x in (torch.eye(3).to_sparse(), torch.eye(3).to_sparse_csr()):
        with pytest.raises(TypeError, match=r"\['x'\] is a tensor of the layout torch.sparse_.*to_dense\(\)"):
            fl.DataLoader({"x": x}, 2)


def test_whole_numbers_may_be_of_numpy():
    loader = fl.DataLoader(range(5), np.int64(2), workers=np.int32(0), shuffle=np.bool_(True).item())
    assert json.dumps(loader.state_dict())
    assert [len(b) for b in loader] == [2, 2, 1]
    assert len(list(fl.DataLoader(NoisyStream(5), np.uint8(2), shuffle=np.int64(3)))) == 3


def test_weights_and_orders_of_ones_own_are_a_subset():
    x = torch.arange(4)
    part = Subset(torch.utils.data.TensorDataset(x), [3, 3, 0])
    assert [b.tolist() for (b,) in fl.DataLoader(part, 2)] == [[3, 3], [0]]
    assert [b.tolist() for b in fl.DataLoader(mapobs(lambda i: x[i], [3, 3, 0]), 2)] == [[3, 3], [0]]


def test_a_list_is_one_of_samples():
    loader = fl.DataLoader([("a", 1), ("b", 2), ("c", 3)], 2)
    assert [(w, n.tolist()) for w, n in loader] == [(["a", "b"], [1, 2]), (["c"], [3])]


def test_a_tuple_or_dict_is_one_of_arrays():
    assert [x.tolist() for x, _ in fl.DataLoader((np.arange(3), [np.arange(3)]), 2)] == [[0, 1], [2]]


def test_a_list_of_arrays_is_an_error_that_tells_the_two_meanings():
    for use in (lambda d: fl.DataLoader(d, 2), lambda d: fl.splitobs(d, 0.5)):
        with pytest.raises(ValueError, match=r"tuple\(data\), .*torch.stack\(data\), .*collate="):
            use([torch.zeros(3), torch.zeros(3)])


def test_anything_with_a_length_and_items_is_a_data_set():
    assert [b.tolist() for b in fl.DataLoader(range(5), 2)] == [[0, 1], [2, 3], [4]]


def test_own_collate_gets_the_samples_and_transform_the_batch():
    loader = fl.DataLoader(range(5), 2, collate=list, transform=sum)
    assert list(loader) == [1, 5, 4]


def test_a_transform_of_arrays_gets_the_slices():
    loader = fl.DataLoader((torch.arange(4), torch.arange(4)), 2, transform=lambda b: b[0] + b[1])
    assert [b.tolist() for b in loader] == [[0, 2], [4, 6]]


def test_a_stream_has_as_many_batches_as_it_says():
    class Sized(Skipping):
        def __len__(self):
            return self.n

    assert len(fl.DataLoader(Sized(7), 2)) == 4
    assert len(fl.DataLoader(Sized(7), 2, partial=False)) == 3
    with pytest.raises(TypeError, match="the number of batches of this stream is unknown"):
        len(fl.DataLoader(Skipping(7), 2))


def test_a_stream_is_read_anew_each_epoch():
    loader = fl.DataLoader(NoisyStream(5), 2)
    for _ in range(2):
        assert [b["i"].tolist() for b in loader] == [[0, 1], [2, 3], [4]]


class Lengthless(torch.utils.data.Dataset):
    def __getitem__(self, i):
        return i


@pytest.mark.parametrize(
    ("data", "options", "error", "text"),
    [
        (iter([1, 2]), {}, TypeError, "an iterator, which can be read only once"),
        (Lengthless(), {}, TypeError, "the Lengthless has no length; .*__len__"),
        ("text", {}, TypeError, "the data is a str; data is a tree of"),
        (3, {}, TypeError, "the data is a int; data is a tree of"),
        (NoisyStream(3), {"shuffle": True}, ValueError, "a stream can't be put in order .*shuffle=1000"),
        (NoisyStream(3), {"shuffle": 1}, ValueError, "shuffle=1: for a stream write False, or how many"),
        (range(3), {"shuffle": 1000}, ValueError, "shuffle=1000: write True or False; .*for streams"),
        (torch.ones(3), {"shuffle": 1000}, ValueError, "shuffle=1000: write True or False"),
        (torch.ones(3), {"collate": list}, ValueError, "collate joins samples.*write transform="),
        (range(3), {"workers": -1}, ValueError, "workers=-1: write how many processes"),
        (range(3), {"workers": 1.0}, ValueError, "workers=1.0: write how many processes"),
        (range(3), {"batch_size": True}, ValueError, "batch_size=True: write a whole number"),
        (range(3), {"batch_size": np.float64(2)}, ValueError, r"batch_size=np.float64\(2.0\): write a whole"),
        (NoisyStream(3), {"shuffle": 2.5}, ValueError, "shuffle=2.5: for a stream write False, or how many"),
        (torch.ones(3), {"key": fl.Key(0)}, ValueError, "got a key but keeps the order of the data"),
        (range(3), {"key": 3}, TypeError, r"takes a Key, found int 3; write Key\(3\)"),
        (range(3), {"num_workers": 2}, TypeError, "DataLoader has no num_workers=: write workers=2"),
        (range(3), {"drop_last": True}, TypeError, "DataLoader has no drop_last=: write partial=False"),
        (
            range(3),
            {"sampler": [2, 1]},
            TypeError,
            r"DataLoader has no sampler=: write data in the order wanted, .*Subset",
        ),
        (range(3), {"pin_memory": True}, TypeError, "DataLoader has no pin_memory=: write device="),
        (
            range(3),
            {"bach_size": 2},
            TypeError,
            "no bach_size= .did you mean batch_size=.*it takes data, batch",
        ),
    ],
    ids=lambda x: type(x).__name__ if not isinstance(x, (str, dict)) else str(x),
)
def test_what_does_not_go_together_is_an_error_that_says_what_to_write(data, options, error, text):
    with pytest.raises(error, match=text):
        fl.DataLoader(data, **options)


@pytest.mark.parametrize(
    "data", [[1, 2, 3], torch.arange(1, 4), range(1, 4)], ids=["list", "tensor", "range"]
)
def test_a_mapped_data_set_is_computed_when_asked_for(data):
    asked = []

    def double(x):
        asked.append(int(x))
        return 2 * int(x)

    mapped = mapobs(double, data)
    assert (len(mapped), asked) == (3, [])
    assert (mapped[0], mapped[-1], asked) == (2, 6, [1, 3])
    assert list(mapped) == [2, 4, 6]
    assert repr(mapped).startswith("mapobs(")
    with pytest.raises(IndexError, match="observation 3 of 3"):
        mapped[3]
    assert [b.tolist() for b in fl.DataLoader(mapped, 2)] == [[2, 4], [6]]


def test_a_mapped_tree_of_arrays_gives_its_rows():
    mapped = mapobs(lambda row: row["x"].sum() + row["y"], {"x": torch.ones(3, 2), "y": torch.arange(3)})
    assert [float(v) for v in mapped] == [2.0, 3.0, 4.0]


def test_repr_says_what_is_read_and_how():
    assert repr(fl.DataLoader(NoisyStream(3), 2)).startswith("DataLoader(a stream, batch_size=2")
    loader = fl.DataLoader(range(4), 2, workers=2, device="cpu")
    assert repr(loader).endswith("partial=True, workers=2, device='cpu')")
