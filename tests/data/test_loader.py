from __future__ import annotations

import numpy as np
import pytest
import torch

import fluxlike as fl


def joined(batches):
    return torch.cat(list(batches))


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(
    ("n", "size", "partial", "sizes"),
    [
        (6, 2, True, [2, 2, 2]),
        (7, 2, True, [2, 2, 2, 1]),
        (7, 2, False, [2, 2, 2]),
        (3, 5, True, [3]),
        (3, 5, False, []),
        (0, 2, True, []),
        (4, 1, True, [1, 1, 1, 1]),
    ],
)
def test_sizes_of_batches_and_their_number(n, size, partial, sizes, shuffle):
    loader = fl.DataLoader(torch.arange(n), batch_size=size, partial=partial, shuffle=shuffle)
    assert [len(b) for b in loader] == sizes
    assert len(loader) == len(sizes)


def test_without_shuffle_batches_are_views_in_order():
    x = torch.arange(5)
    batches = list(fl.DataLoader(x, batch_size=2))
    assert torch.equal(joined(batches), x)
    assert all(b.untyped_storage().data_ptr() == x.untyped_storage().data_ptr() for b in batches)


def test_shuffled_every_observation_comes_once_and_rows_stay_together():
    x = torch.arange(101)
    loader = fl.DataLoader((x, {"square": x**2}), batch_size=7, shuffle=True)
    pairs = [(a, b["square"]) for a, b in loader]
    seen = joined(a for a, _ in pairs)
    assert torch.equal(seen.sort().values, x)
    assert not torch.equal(seen, x)
    assert all(torch.equal(a**2, b) for a, b in pairs)


def test_each_epoch_has_another_order_and_manual_seed_brings_it_back():
    loader = fl.DataLoader(torch.arange(100), batch_size=10, shuffle=True)
    torch.manual_seed(4)
    first, second = joined(loader), joined(loader)
    torch.manual_seed(4)
    assert torch.equal(joined(loader), first)
    assert not torch.equal(first, second)


def test_shuffled_batches_are_copies_that_leave_the_data_alone():
    x = torch.arange(6)
    for batch in fl.DataLoader(x, batch_size=2, shuffle=True):
        batch.zero_()
    assert torch.equal(x, torch.arange(6))


def test_unshuffled_iteration_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    list(fl.DataLoader(torch.arange(6), batch_size=2))
    assert torch.equal(torch.get_rng_state(), state)


def test_two_iterations_at_once_do_not_disturb_each_other():
    loader = fl.DataLoader(torch.arange(4), batch_size=2)
    assert [(a.tolist(), b.tolist()) for a, b in zip(loader, loader, strict=True)] == [
        ([0, 1], [0, 1]),
        ([2, 3], [2, 3]),
    ]


def test_batches_have_the_structure_of_the_data():
    data = {"x": torch.arange(4), "pair": (torch.arange(4), [np.arange(4)])}
    batch = next(iter(fl.DataLoader(data, batch_size=3)))
    assert set(batch) == {"x", "pair"}
    assert isinstance(batch["pair"], tuple)
    assert isinstance(batch["pair"][1], list)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.uint8, np.bool_])
@pytest.mark.parametrize("shuffle", [False, True])
def test_numpy_arrays_become_tensors_of_their_dtype(dtype, shuffle):
    x = np.arange(12).reshape(6, 2).astype(dtype)
    (batch,) = fl.DataLoader(x, batch_size=6, shuffle=shuffle)
    assert isinstance(batch, torch.Tensor)
    assert batch.numpy().dtype == dtype
    assert shuffle or np.array_equal(batch.numpy(), x)


def test_a_read_only_numpy_array_is_loaded_without_a_warning():
    x = np.arange(4)
    x.flags.writeable = False
    assert joined(fl.DataLoader(x, batch_size=2)).tolist() == [0, 1, 2, 3]


def test_a_reversed_numpy_array_is_loaded():
    assert joined(fl.DataLoader(np.arange(4)[::-1], batch_size=2)).tolist() == [3, 2, 1, 0]


def test_a_transposed_numpy_array_is_loaded():
    x = np.arange(6).reshape(2, 3).T
    assert np.array_equal(joined(fl.DataLoader(x, batch_size=2)).numpy(), x)


@pytest.mark.parametrize("size", [0, -1, 2.0, "2", None])
def test_a_batch_size_that_is_no_whole_number_is_an_error(size):
    with pytest.raises(ValueError, match=r"batch_size=.*: write a whole number of at least 1"):
        fl.DataLoader(torch.arange(4), batch_size=size)


@pytest.mark.parametrize(
    "y", [torch.full((600,), 7.5), np.full(600, 7.5), [7.5] * 600], ids=["tensor", "array", "list"]
)
def test_arrays_as_two_arguments_are_an_error_that_shows_none_of_their_content(y):
    with pytest.raises(ValueError, match=r"write DataLoader\(\(x, y\), batch_size=32\)") as error:
        fl.DataLoader(torch.zeros(600, 2), y)
    assert str(error.value).startswith(f"batch_size is a {type(y).__name__}, ")
    assert "7.5" not in str(error.value)


def test_arrays_of_different_lengths_are_an_error_with_their_paths():
    data = {"x": torch.zeros(4, 2), "y": np.zeros(5)}
    with pytest.raises(ValueError, match=r"\['x'\] holds 4 observations, \['y'\] holds 5"):
        fl.DataLoader(data, batch_size=2)


def test_a_leaf_that_is_no_array_is_an_error_with_its_path():
    with pytest.raises(TypeError, match=r"\[1\] is a str; data is a tree of tensors or numpy arrays"):
        fl.DataLoader((torch.zeros(4), "labels"), batch_size=2)


def test_a_numpy_array_that_torch_cannot_hold_is_an_error_with_its_path():
    with pytest.raises(TypeError, match=r"\['names'\]"):
        fl.DataLoader({"names": np.array(["a", "b"])}, batch_size=2)


def test_the_mask_of_a_numpy_array_is_not_lost_without_a_word():
    with pytest.raises(TypeError, match=r"\['x'\] is a masked array, .*np.ma.getmaskarray\(x\)"):
        fl.DataLoader({"x": np.ma.masked_equal([1, 2, 3], 2)})


def test_repr_says_how_many_and_how():
    loader = fl.DataLoader(torch.arange(4), batch_size=2, shuffle=True)
    assert repr(loader) == "DataLoader(4 observations, batch_size=2, shuffle=True, partial=True)"
