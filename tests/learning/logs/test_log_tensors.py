"""What logs make of tensors: histograms and pictures."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fluxlike.learning.logs import histogram as histograms
from fluxlike.learning.logs.histogram import histogram
from fluxlike.learning.logs.pictures import pixels

float32 = arrays.arrays(np.float32, st.integers(1, 50), elements=st.floats(width=32))


@given(float32)
def test_every_entry_is_counted_once(values):
    found = histogram(torch.from_numpy(values))
    finite = values[np.isfinite(values)].astype(np.float64)
    assert sum(found.counts) == len(finite)
    assert found.nonfinite == len(values) - len(finite)
    if len(finite):
        assert (found.edges[0], found.edges[-1]) == (finite.min(), finite.max())
        assert len(found.edges) == len(found.counts) + 1
        assert found.edges == sorted(found.edges)
        assert found.total == pytest.approx(finite.sum(), abs=1e-12 * np.abs(finite).sum())


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool], ids=str
)
def test_the_counts_are_those_of_numpy(dtype, monkeypatch):
    monkeypatch.setattr(histograms, "_PART", 700)
    values = (torch.randn(5000, generator=torch.Generator().manual_seed(0)) * 20).relu().to(dtype)
    found = histogram(values.reshape(50, 100))
    counts, edges = np.histogram(values.double().numpy(), bins=64)
    assert found.counts == counts.tolist()
    np.testing.assert_allclose(found.edges, edges, rtol=1e-12, atol=1e-12)
    assert found.squares == pytest.approx(values.double().square().sum().item(), rel=1e-12)


@pytest.mark.parametrize("values", [[1e308, -1e308], [5e-324, 0.0], [3.0], [2.0, 2.0]], ids=str)
def test_numbers_at_the_ends_of_their_range(values):
    found = histogram(torch.tensor(values, dtype=torch.float64))
    assert sum(found.counts) == len(values)
    assert (found.edges[0], found.edges[-1]) == (min(values), max(values))


def test_no_histogram_of_nothing_or_of_complex_numbers():
    with pytest.raises(ValueError, match=r"no entries: the tensor has the shape \(0, 3\)"):
        histogram(torch.ones(0, 3))
    with pytest.raises(TypeError, match="complex64"):
        histogram(torch.ones(3, dtype=torch.complex64))
    with pytest.raises(TypeError, match="found a list"):
        histogram([1.0])


def test_pictures_are_bytes_or_floats_rounded_to_them():
    bytes_ = torch.arange(2 * 3, dtype=torch.uint8).reshape(1, 2, 3) * 40
    wanted = bytes_.movedim(0, -1).numpy()
    for image in (bytes_, bytes_.float() / 255, (bytes_ / 255).double(), bytes_[0]):
        assert np.array_equal(pixels(image), wanted)


def test_several_pictures_are_put_beside_each_other():
    many = torch.arange(10, dtype=torch.uint8).reshape(10, 1, 1, 1).expand(10, 3, 2, 2)
    grid = pixels(many)
    assert grid.shape == (4, 16, 3)
    assert grid[0, ::2, 0].tolist() == list(range(8))
    assert grid[2, ::2, 2].tolist() == [8, 9, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("image", "error", "says"),
    [
        (torch.full((1, 2, 2), 1.5), ValueError, "from 0 to 1, found 1.5 to 1.5; undo the normalisation"),
        (torch.full((1, 2, 2), torch.nan), ValueError, "found nan to nan"),
        (torch.ones(2, 4, 4), ValueError, r"shape \(2, 4, 4\); write \(C, H, W\)"),
        (torch.ones(4), ValueError, r"shape \(4,\)"),
        (torch.ones(3, 0, 4), ValueError, r"shape \(3, 0, 4\)"),
        (torch.ones(3, 4, 4, dtype=torch.int64), TypeError, "found torch.int64"),
        (np.ones((3, 4, 4)), TypeError, "found a ndarray"),
    ],
    ids=["large", "nan", "channels", "vector", "empty", "integers", "array"],
)
def test_what_is_no_picture_is_refused(image, error, says):
    with pytest.raises(error, match=says):
        pixels(image)
