"""Random networks with a flatten, from Keras' arrays: they compute what numpy does with channels last."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fluxlike as fl


def conv(x, kernel, bias):
    """Windows of x (N, \\*S, C) times a kernel (\\*K, C, O)."""
    n = kernel.ndim - 2
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:n], tuple(range(1, n + 1)))
    return np.tensordot(windows, np.moveaxis(kernel, n, 0), n + 1) + bias


def pool(x, reduce):
    sizes = [n // 2 for n in x.shape[1:-1]]
    x = x[:, *(slice(2 * n) for n in sizes)]
    split = x.reshape(x.shape[0], *(m for n in sizes for m in (n, 2)), x.shape[-1])
    return reduce(split, tuple(range(2, split.ndim - 1, 2)))


def repeated(x):
    for axis in range(1, x.ndim - 1):
        x = x.repeat(2, axis)
    return x


def cat(*xs):
    return torch.cat(xs, 1)


class Network:
    """Layers of ours, the arrays of Keras and the same function in numpy, all built step by step."""

    def __init__(self, seed, spatial, channels):
        self.rng = np.random.default_rng(seed)
        self.layers, self.arrays = [], []
        self.x = self.y = self.rng.normal(size=(2, *spatial, channels))
        self.n = len(spatial)

    def array(self, *shape):
        self.arrays.append(self.rng.normal(size=shape))
        return self.arrays[-1]

    def new_conv(self, out, size):
        c, window = self.y.shape[-1], (size,) * self.n
        return fl.Conv(window, c, out), conv(self.y, self.array(*window, c, out), self.array(out))

    def add(self, layer, y):
        self.layers.append(layer)
        self.y = y

    def conv(self):
        size = 2 if min(self.y.shape[1:-1]) > 1 else 1
        self.add(*self.new_conv(int(self.rng.integers(1, 5)), size))

    def parallel(self):
        (a, y), (b, z) = self.new_conv(2, 1), self.new_conv(3, 1)
        self.add(fl.Parallel(cat, a, b), np.concatenate([y, z], -1))

    def residual(self):
        layer, y = self.new_conv(self.y.shape[-1], 1)
        self.add(fl.SkipConnection(layer, torch.add), self.y + y)

    def dense_connection(self):
        layer, y = self.new_conv(2, 1)
        self.add(fl.SkipConnection(layer, cat), np.concatenate([y, self.y], -1))

    def gate(self):
        (a, y), (b, z) = self.new_conv(3, 1), self.new_conv(1, 1)
        self.add(fl.Parallel(lambda a, b: a * torch.sigmoid(b), a, b), y / (1 + np.exp(-z)))

    def half(self):
        n = -(-self.y.shape[-1] // 2)
        if n > 1:  # of one channel it is not seen that it is one
            self.add(lambda x: x.chunk(2, 1)[0], self.y[..., :n])

    def max_pool(self):
        if min(self.y.shape[1:-1]) > 1:
            self.add(fl.MaxPool((2,) * self.n), pool(self.y, np.max))

    def mean_pool(self):
        if min(self.y.shape[1:-1]) > 1:
            self.add(fl.MeanPool((2,) * self.n), pool(self.y, np.mean))

    def upsample(self):
        if max(self.y.shape[1:-1]) < 8:
            self.add(fl.Upsample(2), repeated(self.y))

    def shift(self):
        self.add(lambda x: x.roll(1, 2), np.roll(self.y, 1, 1))

    def norm(self):
        c = self.y.shape[-1]
        scale, shift, mean = self.array(c), self.array(c), self.array(c)
        self.arrays.append(var := self.rng.uniform(0.5, 1, size=c))
        self.add(fl.BatchNorm(c), (self.y - mean) / np.sqrt(var + 1e-5) * scale + shift)

    def relu(self):
        self.add(fl.relu, np.maximum(self.y, 0))

    def moved(self):
        order = (0, *range(2, self.n + 2), 1)
        c = self.y.shape[-1]
        kernel, bias = self.array(c, 3), self.array(3)
        back = (0, self.n + 1, *range(1, self.n + 1))
        self.layers += [lambda x: x.permute(order), fl.Dense(c, 3), lambda x: x.permute(back)]
        self.y = self.y @ kernel + bias

    def excite(self):
        c, places = self.y.shape[-1], tuple(range(1, self.n + 1))
        kernel, bias = self.array(c, c), self.array(c)
        gate = 1 / (1 + np.exp(-(self.y.mean(places) @ kernel + bias)))
        squeeze = fl.Chain(fl.GlobalMeanPool(), fl.flatten, fl.Dense(c, c, fl.sigmoid))
        n = self.n
        self.add(
            fl.SkipConnection(squeeze, lambda s, x: x * s.reshape(*s.shape, *[1] * n)),
            self.y * gate.reshape(-1, *[1] * self.n, c),
        )

    def shuffle(self):
        if self.y.shape[-1] % 2 == 0:
            split = self.y.reshape(*self.y.shape[:-1], 2, -1)
            self.add(
                lambda x: x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2),
                split.swapaxes(-1, -2).reshape(self.y.shape),
            )

    def swap(self):
        n = self.y.shape[-1] // 2
        if n > 1:
            self.add(
                lambda x: torch.cat([x[:, n:], x[:, :n]], 1),
                np.concatenate([self.y[..., n:], self.y[..., :n]], -1),
            )

    def smallest(self):
        if self.n == 2:
            self.add(lambda x: x.amin(2), self.y.min(1))
            self.n = 1

    def turn(self):
        if self.n == 2:
            self.add(lambda x: x.transpose(2, 3), self.y.swapaxes(1, 2))

    def flatten(self):
        self.add(fl.flatten, self.y.reshape(len(self.y), -1))

    def dense(self, out):
        n = self.y.shape[-1]
        self.add(fl.Dense(n, out), self.y @ self.array(n, out) + self.array(out))

    def images(self, channels, *spatial):
        self.add(lambda x: x.reshape(-1, channels, *spatial), self.y.reshape(-1, *spatial, channels))
        self.n = len(spatial)

    def both(self):
        self.add(fl.Parallel(cat, fl.identity, fl.relu), np.concatenate([self.y, np.maximum(self.y, 0)], -1))

    def check(self, framework):
        model = fl.f64(fl.Chain(*self.layers))
        x = torch.from_numpy(self.x).movedim(-1, 1)
        loaded = fl.load_foreign_state(model, self.arrays, framework, inputs=x)
        found = loaded(x)
        found = found.movedim(1, -1) if found.ndim > 2 else found
        np.testing.assert_allclose(found.numpy(), self.y, rtol=1e-9, atol=1e-9)
        again = fl.foreign_state(loaded, framework, inputs=x)
        assert fl.tree.allclose(
            fl.load_foreign_state(fl.f64(fl.Chain(*self.layers)), again, framework, inputs=x), loaded
        )


IMAGE = ["conv", "parallel", "residual", "dense_connection", "gate", "half", "max_pool", "mean_pool"]
IMAGE += ["upsample", "shift", "norm", "relu", "moved", "excite", "shuffle", "swap", "smallest", "turn"]
FLAT = ["norm", "relu", "both"]


@given(
    seed=st.integers(0, 2**32 - 1),
    spatial=st.lists(st.integers(2, 6), min_size=1, max_size=2),
    image=st.lists(st.sampled_from(IMAGE), max_size=6),
    flat=st.lists(st.sampled_from(FLAT), max_size=3),
)
@settings(max_examples=60, deadline=None)
def test_images_that_are_flattened(seed, spatial, image, flat):
    net = Network(seed, spatial, 3)
    net.conv()
    for name in (*image, "flatten", *flat):
        getattr(net, name)()
    net.dense(4)
    net.relu()
    net.dense(2)
    net.check("keras")


@given(
    seed=st.integers(0, 2**32 - 1),
    flat=st.lists(st.sampled_from(["norm", "relu"]), max_size=3),
    image=st.lists(st.sampled_from(IMAGE), max_size=5),
    shape=st.tuples(*[st.integers(2, 4)] * 3),
)
@settings(max_examples=40, deadline=None)
def test_features_that_become_images(seed, flat, image, shape):
    net = Network(seed, (), 5)
    net.dense(int(np.prod(shape)))
    for name in flat:
        getattr(net, name)()
    net.images(*shape)
    for name in ("conv", *image, "flatten"):
        getattr(net, name)()
    net.dense(2)
    net.check("keras")


@pytest.mark.parametrize("name", IMAGE)
def test_each_step_alone(name):
    net = Network(0, (5, 4), 4)
    net.conv()
    for step in (partial(getattr(net, name)), net.flatten, net.both, partial(net.dense, 2)):
        step()
    net.check("flax" if name != "norm" else "keras")
