"""What a loader reads, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from data_fixtures import Noisy, NoisyStream, Skipping

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
        (torch.ones(3), {"key": fl.Key(0)}, ValueError, "got a key but keeps the order; nothing is random"),
        (range(3), {"key": 3}, TypeError, r"takes a Key, found int 3; write Key\(3\)"),
    ],
    ids=lambda x: type(x).__name__ if not isinstance(x, (str, dict)) else str(x),
)
def test_what_does_not_go_together_is_an_error_that_says_what_to_write(data, options, error, text):
    text = text.replace("the order; nothing is random", "the order of the data")
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
