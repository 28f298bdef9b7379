"""MixUp and CutMix: the papers' mixtures, from the key in scope."""

import dataclasses
import importlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torchvision_here import torchvision

import fluxlike as fl
from fluxlike import random
from fluxlike.data import mixing
from fluxlike.scope.seeded import seeded

MIXERS = [fl.data.MixUp, fl.data.CutMix]


def v2():
    """torchvision's transforms of tensors."""
    torchvision()
    return importlib.import_module("torchvision.transforms.v2")


def batch(n=6, shape=(3, 8, 10), classes=4, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand((n, *shape), generator=generator).to(dtype)
    return x, torch.randint(classes, (n,), generator=generator)


def drawn(mix, key, data):
    with fl.seeded(fl.Key(key)):
        return mix(data)


@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.5, 1.0, 2.0, 30.0])
def test_shares_are_beta_distributed(alpha):
    with fl.seeded(fl.Key(7)):
        shares = np.array([mixing._symmetric_beta(alpha).item() for _ in range(2000)])
    lower = shares[shares < 0.5]  # where float64 is fine enough for the tail
    assert stats.kstest(lower, lambda x: 2 * stats.beta(alpha, alpha).cdf(x)).pvalue > 0.01
    assert abs(shares.mean() - 0.5) < 4 * np.sqrt(1 / (4 * (2 * alpha + 1)) / 2000)
    assert abs(shares.var() - 1 / (4 * (2 * alpha + 1))) < 0.02


def test_shares_by_torchs_generator_are_beta_distributed_too():
    torch.manual_seed(0)
    shares = [mixing._symmetric_beta(0.4).item() for _ in range(2000)]
    assert stats.kstest(shares, stats.beta(0.4, 0.4).cdf).pvalue > 0.01


@pytest.mark.parametrize("alpha", [1e-300, 1e-3, 0.2, 1.0, 1e3, 1e300])
@pytest.mark.parametrize("u", [0.0, 2.0**-53, 0.5, 1 - 2.0**-53])
@pytest.mark.parametrize("v", [0.0, 0.25, 0.5, 1 - 2.0**-53])
def test_a_share_of_the_rarest_draws_is_a_number_from_0_to_1(monkeypatch, alpha, u, v):
    monkeypatch.setattr(random, "uniform", lambda *args, **kwargs: torch.tensor([u, v], dtype=torch.float64))
    assert 0 <= mixing._symmetric_beta(alpha).item() <= 1


@given(
    n=st.integers(1, 6),
    key=st.integers(0, 2**32),
    alpha=st.floats(0.01, 10),
    soft=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=60, deadline=None)
def test_mixup_is_a_share_of_each_example_and_of_its_partner(n, key, alpha, soft, dtype):
    x, y = batch(n, dtype=dtype)
    hot = torch.nn.functional.one_hot(y, 4).float()
    mixed, targets = drawn(fl.data.MixUp(alpha, classes=4), key, (x, hot if soft else y))
    with seeded(fl.Key(key)):
        share, other = mixing._symmetric_beta(alpha), random.permutation(n)
    torch.testing.assert_close(mixed, x * share + x[other] * (1 - share))
    torch.testing.assert_close(targets, (hot * share + hot[other] * (1 - share)).float())
    torch.testing.assert_close(targets.sum(1), torch.ones(n))
    assert mixed.dtype == dtype


@given(n=st.integers(1, 6), key=st.integers(0, 2**32), h=st.integers(1, 12), w=st.integers(1, 12))
@settings(max_examples=100, deadline=None)
def test_cutmix_weighs_targets_by_the_pixels_exactly(n, key, h, w):
    x = torch.eye(n)[:, :, None, None].expand(n, n, h, w)  # the channel says whose pixel it is
    mixed, targets = drawn(fl.data.CutMix(classes=n), key, (x, torch.arange(n)))
    assert torch.equal(mixed.sum(1), torch.ones(n, h, w))
    torch.testing.assert_close(targets, mixed.mean((2, 3)))


def test_a_box_is_a_rectangle_of_the_partner_in_the_same_place():
    x, y = batch()
    mixed, _ = drawn(fl.data.CutMix(classes=4), 4, (x, y))
    with seeded(fl.Key(4)):
        mixing._symmetric_beta(1.0), random.uniform((2,), dtype=torch.float64)
        other = random.permutation(6)
    changed = (mixed != x).any(1)
    assert torch.equal(mixed.movedim(1, -1)[changed], x[other].movedim(1, -1)[changed])
    rows, columns = (changed.any(0).any(d).nonzero().flatten() for d in (1, 0))
    inside = torch.zeros(8, 10, dtype=torch.bool)
    inside[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
    assert torch.equal(changed[other != torch.arange(6)].all(0), inside)
    assert 0 < inside.sum() < 80


def test_torchvisions_mixup_is_the_same_for_the_same_share_and_partners(monkeypatch):
    theirs = v2().MixUp(alpha=0.4, num_classes=4)
    x, y = batch()
    monkeypatch.setattr(mixing, "_symmetric_beta", lambda alpha: torch.tensor(0.3, dtype=torch.float64))
    monkeypatch.setattr(random, "permutation", lambda n, device: torch.arange(n).roll(1))
    monkeypatch.setattr(theirs, "make_params", lambda inputs: {"lam": 0.3})
    for ours, expected in zip(fl.data.MixUp(0.4, classes=4)((x, y)), theirs(x, y), strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("centre", [(0, 0), (4, 5), (7, 9)], ids=str)
def test_torchvisions_cutmix_is_the_same_for_the_same_share_centre_and_partners(monkeypatch, share, centre):
    theirs = v2().CutMix(alpha=1.0, num_classes=4)
    x, y = batch()
    at = torch.tensor([(centre[0] + 0.5) / 8, (centre[1] + 0.5) / 10], dtype=torch.float64)
    monkeypatch.setattr(mixing, "_symmetric_beta", lambda alpha: torch.tensor(share, dtype=torch.float64))
    monkeypatch.setattr(random, "permutation", lambda n, device: torch.arange(n).roll(1))
    monkeypatch.setattr(random, "uniform", lambda *args, **kwargs: at)
    ours = fl.data.CutMix(classes=4)((x, y))
    places = iter((torch.tensor([centre[1]]), torch.tensor([centre[0]])))
    with monkeypatch.context() as patch:
        patch.setattr(type(theirs._dist), "sample", lambda self, shape: share)
        patch.setattr(torch, "randint", lambda *args, **kwargs: next(places))
        expected = theirs(x, y)
    for found, wanted in zip(ours, expected, strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_key_or_torchs_generator_decides(mixer):
    mix, data = mixer(1.0, classes=4), batch()
    assert torch.equal(drawn(mix, 3, data)[0], drawn(mix, 3, data)[0])
    assert not torch.equal(drawn(mix, 3, data)[0], drawn(mix, 5, data)[0])
    torch.manual_seed(3)
    first = mix(data)[1]
    assert not torch.equal(mix(data)[1], first)
    torch.manual_seed(3)
    assert torch.equal(mix(data)[1], first)


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_batch_is_not_changed_nor_are_settings(mixer):
    x, y = batch()
    before = x.clone(), y.clone()
    mix = mixer(classes=4)
    drawn(mix, 0, (x, y))
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])
    with pytest.raises(dataclasses.FrozenInstanceError):
        mix.alpha = 2.0


@pytest.mark.slow  # compiles
@pytest.mark.parametrize("mixer", MIXERS)
def test_jit_mixes_as_eager(mixer):
    mix, (x, y) = mixer(1.0, classes=4), batch()

    def mixed(key, x, y):
        with fl.seeded(key):
            return mix((x, y))

    for ours, eager in zip(fl.jit(mixed)(fl.Key(4), x, y), mixed(fl.Key(4), x, y), strict=True):
        torch.testing.assert_close(ours, eager)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mixer", MIXERS)
def test_a_gpu_mixes_as_the_cpu(mixer):
    mix, (x, y) = mixer(1.0, classes=4), batch()
    on_gpu = drawn(mix, 4, (x.cuda(), y.cuda()))
    for found, expected in zip(on_gpu, drawn(mix, 4, (x, y)), strict=True):
        assert found.is_cuda
        torch.testing.assert_close(found.cpu(), expected)


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (lambda x, y: ((x * 255).byte(), y), TypeError, r"x is of torch\.uint8.*write x\.float\(\) / 255"),
        (lambda x, y: (x, y[:3]), ValueError, r"x has the shape \(6, 3, 8, 10\) and y \(3,\)"),
        (lambda x, y: (x, y + 4), ValueError, r"labels run from 0 to 3, found 4 to 7"),
        (lambda x, y: (x, y - 1), ValueError, "labels run from 0 to 3, found -1"),
        (lambda x, y: (x, y.float()), ValueError, "write class numbers, integers of shape"),
        (lambda x, y: (x, torch.zeros(6, 4).long()), TypeError, r"write y\.float\(\)"),
        (lambda x, y: (x, torch.zeros(6, 5)), ValueError, r"classes=4\): y has the shape \(6, 5\)"),
        (lambda x, y: (x, y.tolist()), TypeError, "y is a list; write a tensor"),
        (lambda x, y: x, TypeError, r"takes one batch \(x, y\), found a Tensor; write mix\(\(x, y\)\)"),
    ],
    ids=range(9),
)
def test_a_wrong_batch_is_an_error_that_teaches(mixer, data, error, message):
    x, y = batch()
    y[:4] = torch.arange(4)
    with pytest.raises(error, match=f"{mixer.__name__}.*{message}"):
        mixer(classes=4)(data(x, y))


@pytest.mark.parametrize("mixer", MIXERS)
def test_wrong_settings_are_refused(mixer):
    for alpha in (0, -1.0, float("inf"), float("nan"), "1"):
        with pytest.raises(ValueError, match="write a number above 0; to mix nothing, leave"):
            mixer(alpha)
    with pytest.raises(ValueError, match="write how many classes there are"):
        mixer(classes=range(3))
    with pytest.raises(ValueError, match="say how many there are, such as"):
        mixer()(batch())


def test_cutmix_takes_images_alone():
    with pytest.raises(ValueError, match=r"images of shape \(N, C, H, W\), found \(6, 5\); MixUp takes any"):
        fl.data.CutMix(classes=4)(batch(shape=(5,)))
    assert fl.data.MixUp(classes=4)(batch(shape=(5,)))[0].shape == (6, 5)
