"""Laws of layouts, over any rank, dtype, strides and registered rules."""

import contextlib
import itertools
import string

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import fluxlike as fl
from fluxlike.placement.layout_rules import CONVENTIONS
from tests.properties.strategies import make_tensor, same_bits

law = settings(max_examples=30, deadline=None)

DTYPES = [
    torch.bool, torch.uint8, torch.int16, torch.int64, torch.float16, torch.bfloat16, torch.float32,
    torch.float64, torch.complex64,
]  # fmt: skip
conventions = st.sampled_from(list(CONVENTIONS))


@st.composite
def tensors(draw, ranks=(1, 6)):
    """A tensor of some rank and dtype whose strides are sliced, expanded and moved about."""
    shape = tuple(draw(st.lists(st.integers(0, 4), min_size=ranks[0], max_size=ranks[1])))
    x = make_tensor(draw(st.sampled_from(DTYPES)), tuple(2 * n for n in shape), draw(st.integers(0, 99)))
    for axis, n in enumerate(shape):
        kind = draw(st.sampled_from(["whole", "sliced", "stepped", "expanded"]))
        if kind == "expanded":
            x = x.narrow(axis, 0, min(1, x.shape[axis])).expand(*x.shape[:axis], 2 * n, *x.shape[axis + 1 :])
        x = {
            "sliced": x.narrow(axis, n, n),
            "stepped": x.movedim(axis, 0)[::2].movedim(0, axis),
        }.get(kind, x)
    return x.permute(draw(st.permutations(range(x.ndim))))


@st.composite
def arrays(draw, ranks=(1, 6)):
    """The same as a tensor or as a numpy array, with some axes running backwards."""
    x = draw(tensors(ranks))
    if x.dtype == torch.bfloat16 or draw(st.booleans()):
        return x
    array = x.numpy()
    for axis in range(array.ndim):
        if draw(st.booleans()):
            array = np.flip(array, axis)
    if draw(st.booleans()):
        array = np.asfortranarray(array)
    if draw(st.booleans()):
        array = array.view()
        array.flags.writeable = False
    return array


def layouts(n):
    return st.permutations(string.ascii_uppercase[:n]).map("".join)


@st.composite
def rules(draw):
    """A rule that may be told on the way back: by its key and its number of axes."""
    n = draw(st.integers(2, 6))
    letters = "N" + string.ascii_uppercase[: n - 1]
    src, dst = draw(st.permutations(letters)), draw(st.permutations(letters))
    return fl.layout_rule("".join(src), "".join(dst), key=draw(st.sampled_from(["a", "b"])))


def strides(x):
    return x.stride() if isinstance(x, torch.Tensor) else x.strides


def pointer(x):
    return x.data_ptr() if isinstance(x, torch.Tensor) else x.__array_interface__["data"][0]


def same_array(a, b):
    """Whether two arrays are one and the same view: kind, dtype, shape, strides, memory."""
    return (
        type(a) is type(b)
        and a.dtype == b.dtype
        and a.shape == b.shape
        and strides(a) == strides(b)
        and pointer(a) == pointer(b)
    )


def values(x):
    return x.contiguous() if isinstance(x, torch.Tensor) else torch.from_numpy(np.array(x, order="C"))


def entries(x):
    """The numbers of an array, whatever their order."""
    return sorted(
        map(
            str,
            (values(x) if isinstance(x, (torch.Tensor, np.ndarray)) else torch.tensor(x.item()))
            .flatten()
            .tolist(),
        )
    )


class TestPermute:
    @law
    @given(arrays(), st.data())
    def test_round_trip_is_the_identity(self, x, data):
        a, b = data.draw(layouts(x.ndim)), data.draw(layouts(x.ndim))
        assert same_array(fl.permute(fl.permute(x, a, b), b, a), x)

    @law
    @given(arrays(), st.data())
    def test_it_composes(self, x, data):
        a, b, c = (data.draw(layouts(x.ndim)) for _ in range(3))
        assert same_array(fl.permute(fl.permute(x, a, b), b, c), fl.permute(x, a, c))

    @law
    @given(arrays(), st.data())
    def test_each_letter_keeps_its_axis(self, x, data):
        a, b = data.draw(layouts(x.ndim)), data.draw(layouts(x.ndim))
        y = fl.permute(x, a, b)
        assert all(y.shape[b.index(c)] == x.shape[a.index(c)] for c in a)
        assert all(strides(y)[b.index(c)] == strides(x)[a.index(c)] for c in a)
        assert same_bits(values(y), values(x).permute([a.index(c) for c in b]).contiguous())

    @law
    @given(arrays(), st.data())
    def test_views_alias(self, x, data):
        a, b = data.draw(layouts(x.ndim)), data.draw(layouts(x.ndim))
        y = fl.permute(x, a, b)
        assert pointer(y) == pointer(x)
        if isinstance(x, np.ndarray):
            assert np.shares_memory(x, y) or not x.size
            assert y.flags.writeable == x.flags.writeable
            return
        if x.numel() and not x.is_complex() and x.dtype != torch.bool:
            at = tuple(n - 1 for n in x.shape)
            y[tuple(y.shape[i] - 1 for i in range(y.ndim))] = 5
            assert x[at] == 5


class TestBatches:
    @law
    @given(st.lists(arrays(), max_size=4), conventions, st.lists(rules(), max_size=3))
    def test_round_trip_is_the_identity(self, batch, convention, rules):
        tree = dict(zip("abcd", batch, strict=False)) | {"none": None, "text": "x"}
        rules = [rule for rule in rules if rule.key in tree]
        here = fl.batch_first(tree, convention, rules=rules)
        again = fl.batch_last(here, convention, rules=rules)
        assert again.keys() == tree.keys()
        assert all(same_array(again[k], tree[k]) for k in "abcd" if k in tree)

    @law
    @given(st.lists(arrays(), max_size=4), conventions, st.lists(rules(), max_size=3))
    def test_the_other_round_trip_too(self, batch, convention, rules):
        tree = dict(zip("abcd", batch, strict=False))
        rules = [rule for rule in rules if rule.key in tree]
        there = fl.batch_last(tree, convention, rules=rules)
        again = fl.batch_first(there, convention, rules=rules)
        assert all(same_array(again[k], tree[k]) for k in tree)

    @law
    @given(arrays(ranks=(1, 6)), conventions)
    def test_the_batch_stays_the_batch(self, x, convention):
        here = fl.batch_first(x, convention)
        assert here.shape[0] == x.shape[-1]
        assert fl.batch_last(x, convention).shape[-1] == x.shape[0]
        for i in range(x.shape[-1]):
            assert entries(here[i]) == entries(x[..., i])

    @law
    @given(arrays(ranks=(2, 6)), conventions, st.data())
    def test_a_users_rule_composes_with_ours(self, x, convention, data):
        """A rule of the user's from its layout to Julia's, then the convention, is one rule."""
        n = x.ndim
        src, julia = data.draw(layouts(n)), string.ascii_uppercase[:n]
        first = fl.layout_rule(src, julia, key="x")
        step = fl.batch_first({"x": x}, convention, rules=[first])["x"]
        both = fl.batch_first({"x": step}, convention)["x"]
        here = "".join(julia[i] for i in axes_after(n, convention))
        once = fl.batch_first({"x": x}, convention, rules=[fl.layout_rule(src, here, key="x")])["x"]
        assert same_array(both, once)

    @law
    @given(arrays(ranks=(2, 4)), conventions)
    def test_ties_stay(self, x, convention):
        for move in (fl.batch_first, fl.batch_last):
            there = move({"a": x, "b": [x, x.T if isinstance(x, np.ndarray) else x.mT]}, convention)
            assert there["a"] is there["b"][0]
            assert there["a"] is not there["b"][1]

    @law
    @given(tensors(), conventions)
    def test_the_device_stays(self, x, convention):
        assert fl.batch_first([x.to("meta")], convention)[0].device.type == "meta"

    @law
    @given(st.data(), conventions)
    def test_the_order_of_rules_is_the_documented_one(self, data, convention):
        """Call, inner block, outer block, registered; there by conditions, then the latest first."""
        conditions = {"key": "x", "dtype": torch.float32, "kind": "tensor", "when": lambda path, x: True}
        targets = iter(["".join(p) for p in itertools.permutations("ABCN")])

        def drawn(n):
            chosen = data.draw(st.lists(st.sets(st.sampled_from(sorted(conditions))), min_size=n, max_size=n))
            return [
                (len(names), fl.layout_rule("ABCN", next(targets), **{k: conditions[k] for k in names}))
                for names in chosen
            ]

        levels = {name: drawn(data.draw(st.integers(0, 3))) for name in ("call", "blocks", "registered")}
        ordered = {
            name: [
                rule
                for _, _, rule in sorted(
                    ((-n, -i, rule) for i, (n, rule) in enumerate(level)), key=lambda t: t[:2]
                )
            ]
            for name, level in levels.items()
        }
        ordered["blocks"] = [rule for _, rule in levels["blocks"]][::-1]
        expected = [*ordered["call"], *ordered["blocks"], *ordered["registered"]]
        shape = dict(zip("ABCN", (2, 3, 4, 5), strict=True))
        while True:
            with contextlib.ExitStack() as stack:
                for _, rule in levels["blocks"]:
                    stack.enter_context(rule)
                for _, rule in levels["registered"]:
                    stack.callback(rule.register().remove)
                rules = [rule for _, rule in levels["call"]]
                here = fl.batch_first({"x": torch.zeros(2, 3, 4, 5)}, convention, rules=rules)["x"]
            if not expected:
                assert here.shape == tuple((2, 3, 4, 5)[i] for i in axes_after(4, convention))
                return
            first_to_win = expected.pop(0)
            assert here.shape == tuple(shape[c] for c in first_to_win.dst)
            for level in levels.values():
                level[:] = [(n, rule) for n, rule in level if rule is not first_to_win]


def axes_after(n, convention):
    """The axes of a batch of n axes in our order, by a test of its own."""
    if convention == "WHCN":
        return list(range(n))[::-1]
    return [3, 2, 0, 1] if n == 4 else [n - 1, *range(n - 1)]


class TestConvolutions:
    """Permuting and then convolving is convolving in the other layout."""

    @law
    @given(st.data())
    def test_julias_images_and_kernels(self, data):
        n, c, o, kw, kh = (data.draw(st.integers(1, 3)) for _ in range(5))
        w, h = kw + data.draw(st.integers(0, 3)), kh + data.draw(st.integers(0, 3))
        x = make_tensor(torch.float64, (w, h, c, n), data.draw(st.integers(0, 99)))
        kernel = make_tensor(torch.float64, (kw, kh, c, o), data.draw(st.integers(0, 99)))
        here = fl.Conv((kh, kw), c, o, bias=False)
        here = fl.load_foreign_state(fl.f64(here), {"weight": kernel}, "flux")
        y = fl.batch_last(here(fl.batch_first(x)))
        assert torch.equal(y, true_convolution(x, kernel))
        unflipped = fl.f64(fl.Conv((kh, kw), c, o, bias=False))
        unflipped = fl.load_foreign_state(unflipped, {"weight": kernel}, "flux", crosscor="")
        assert torch.equal(
            fl.batch_last(unflipped(fl.batch_first(x))), true_convolution(x, kernel.flip(0, 1))
        )

    @law
    @given(st.data(), st.sampled_from(["flax", "keras"]))
    def test_channels_last_images_and_kernels(self, data, framework):
        spatial = data.draw(st.integers(1, 3))
        n, c, o = (data.draw(st.integers(1, 3)) for _ in range(3))
        sizes = [data.draw(st.integers(1, 2)) for _ in range(spatial)]
        shape = [k + data.draw(st.integers(0, 2)) for k in sizes]
        x = make_tensor(torch.float64, (n, *shape, c), data.draw(st.integers(0, 99)))
        kernel = make_tensor(torch.float64, (*sizes, c, o), data.draw(st.integers(0, 99)))
        conv = fl.f64(fl.Conv(tuple(sizes), c, o, bias=False))
        conv = fl.load_foreign_state(conv, {"kernel": kernel}, framework)
        y = conv(x.movedim(-1, 1)).movedim(1, -1)
        windows = x
        for i, k in enumerate(sizes):
            windows = windows.unfold(1 + i, k, 1)
        axes = "DHW"[:spatial]
        wanted = torch.einsum(f"N{axes.lower()}c{axes},{axes}co->N{axes.lower()}o", windows, kernel)
        assert torch.equal(y, wanted)

    @law
    @given(st.integers(0, 99), st.sampled_from(["flux", "flax", "keras"]), st.booleans(), st.integers(1, 3))
    def test_a_model_there_and_back_is_the_model(self, seed, framework, bias, size):
        torch.manual_seed(seed)
        model = fl.Chain(
            fl.Conv((size, 2), 2, 4, fl.relu, groups=2, bias=bias),
            fl.BatchNorm(4),
            fl.flatten,
            fl.Dense(4 * (5 - size) * 3, 3, bias=bias),
        )
        x = torch.zeros(1, 2, 4, 4)
        there = fl.convert_layout(model, "torch", framework, inputs=x)
        for again in (
            fl.convert_layout(there, framework, inputs=x),
            fl.load_foreign_state(
                fl.fmap(torch.zeros_like, model),
                fl.foreign_state(model, framework, inputs=x),
                framework,
                inputs=x,
            ),
        ):
            assert all(map(same_bits, fl.fleaves(again), fl.fleaves(model)))


def true_convolution(x, kernel):
    """(W, H, C, N) with (kw, kh, C, O): the sum over taps of the kernel, which runs against the image."""
    kw, kh = kernel.shape[:2]
    w, h = x.shape[0] - kw + 1, x.shape[1] - kh + 1
    return sum(
        torch.einsum("co,whcn->whon", kernel[p, q], x[kw - 1 - p :, kh - 1 - q :][:w, :h])
        for p in range(kw)
        for q in range(kh)
    )


class TestMemory:
    @law
    @given(tensors())
    def test_channels_last_and_back_keeps_every_bit(self, x):
        there = fl.channels_last({"a": x, "b": [x]})
        again = fl.contiguous(there)
        assert there["a"] is there["b"][0]
        assert same_bits(there["a"], x)
        assert same_bits(again["a"], x)
        assert again["a"].is_contiguous()
        if x.ndim in (4, 5):
            memory = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
            assert there["a"].is_contiguous(memory_format=memory)
        else:
            assert there["a"] is x

    @law
    @given(st.integers(0, 99))
    def test_convolutions_agree_in_either_memory(self, seed):
        x, w = (make_tensor(torch.float64, s, seed) for s in ((2, 3, 5, 4), (4, 3, 2, 2)))
        assert torch.equal(F.conv2d(*fl.channels_last((x, w))), F.conv2d(x, w))


@pytest.mark.parametrize("convention", ["WHCN", "HWCN"])
def test_every_number_of_axes_has_a_rule(convention):
    for n in range(1, 20):
        x = np.zeros([1] * (n - 1) + [2])
        assert fl.batch_last(fl.batch_first(x, convention), convention).shape == x.shape
