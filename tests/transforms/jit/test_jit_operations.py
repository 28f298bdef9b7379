"""`jit` and torch's operations: forward and gradient in float64 as in eager, however it is rewritten."""

import itertools

import pytest
import torch
import torch.nn.functional as F

import fluxlike as fl

D = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed + sum(shape)))


# Pools

POOLS = {
    "2": {"kernel_size": 2},
    "2 by 3": {"kernel_size": (2, 3)},
    "overlapping": {"kernel_size": 3, "stride": 1},
    "padded": {"kernel_size": 3, "stride": 2, "padding": 1},
    "padded, tiling": {"kernel_size": 2, "padding": 1},
    "ceil": {"kernel_size": 2, "ceil_mode": True},
    "dilated": {"kernel_size": 2, "dilation": 2, "stride": 1},
    "gaps": {"kernel_size": 1, "stride": 2},
    "1": {"kernel_size": 1},
}
IMAGES = [(2, 3, 6, 6), (1, 1, 6, 12), (1, 3, 7, 5)]


POOL_INPUTS = {
    "ties": torch.zeros(2, 3, 4, 4, dtype=D),
    "some ties": randn(2, 3, 4, 4).round(),
    "infinities": randn(1, 2, 4, 4).masked_fill(randn(1, 2, 4, 4) > 0.5, -float("inf")),
    "channels last": randn(2, 3, 4, 6).to(memory_format=torch.channels_last),
    "transposed": randn(6, 4, 3, 2).permute(3, 2, 1, 0),
    "expanded": randn(1, 1, 4, 4).expand(2, 3, 4, 4),
    "no batch": randn(3, 4, 4),
}


OTHER_POOLS = {
    "indices": lambda x: sum(t.to(D) for t in F.max_pool2d(x, 2, return_indices=True)),
    "unpool": lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2),
    "one after another": lambda x: F.max_pool2d(F.max_pool2d(x, 2), 2),
    "the same twice": lambda x: F.max_pool2d(x, 2) + 2 * F.max_pool2d(x, 2),
    "a large window": lambda x: F.max_pool2d(x.repeat(1, 1, 2, 2), (12, 16)),
    "gradient of a gradient": lambda x: fl.gradient(lambda x: (F.max_pool2d(x, 2) ** 3).sum(), x),
    "mapped": lambda x: fl.vmap(lambda x: F.max_pool2d(x, 2))(x),
    "mapped gradient": lambda x: fl.vmap(lambda x: fl.gradient(lambda x: (F.max_pool2d(x, 2) ** 2).sum(), x))(
        x
    ),
    "max_pool1d": lambda x: F.max_pool1d(x[:, 0], 2),
    "max_pool3d": lambda x: F.max_pool3d(x, 2),
    "adaptive": lambda x: F.adaptive_max_pool2d(x, (3, 2)),
    "mean": lambda x: F.avg_pool2d(x, 3, padding=1, count_include_pad=False),
    "adaptive mean": lambda x: F.adaptive_avg_pool2d(x, (3, 5)),
}


# Convolutions

CONVOLUTIONS = {
    "plain": ((2, 3, 6, 5), (4, 3, 3, 3), {}),
    "one of everything": ((1, 1, 3, 3), (1, 1, 3, 3), {}),
    "a batch of one": ((1, 3, 7, 5), (4, 3, 3, 3), {"padding": 1}),
    "one channel, strides": ((2, 1, 7, 5), (4, 1, 3, 2), {"stride": 2}),
    "strides by axis": ((2, 3, 7, 8), (2, 3, 2, 3), {"stride": (1, 2), "padding": (0, 2)}),
    "groups": ((2, 4, 6, 6), (6, 2, 3, 3), {"groups": 2, "padding": 1}),
    "depthwise": ((2, 4, 5, 5), (4, 1, 3, 3), {"groups": 4}),
    "dilation": ((2, 2, 9, 9), (3, 2, 3, 3), {"dilation": 2}),
    "1 by 1": ((2, 3, 4, 5), (5, 3, 1, 1), {}),
    "1 by 1, strides": ((2, 3, 5, 5), (5, 3, 1, 1), {"stride": 2}),
    "same": ((2, 3, 5, 5), (5, 3, 3, 5), {"padding": "same"}),
    "no batch": ((3, 5, 5), (2, 3, 3, 3), {}),
    "the whole image": ((2, 3, 5, 5), (1, 3, 5, 5), {}),
}


CONVOLUTIONS_OF_OTHER_STRIDES = {
    "channels last": (
        randn(2, 3, 5, 5).to(memory_format=torch.channels_last),
        randn(4, 3, 3, 3).to(memory_format=torch.channels_last),
    ),
    "transposed": (randn(5, 5, 3, 2).permute(3, 2, 1, 0), randn(3, 3, 3, 4).permute(3, 2, 0, 1)),
    "expanded": (randn(1, 3, 5, 5).expand(3, 3, 5, 5), randn(1, 3, 3, 3).expand(2, 3, 3, 3)),
}
OTHER_CONVOLUTIONS = {
    "1-d": (lambda x, w: F.conv1d(x, w), randn(2, 3, 9), randn(4, 3, 3)),
    "3-d": (lambda x, w: F.conv3d(x, w), randn(1, 2, 4, 4, 4), randn(3, 2, 3, 3, 3)),
    "transposed": (
        lambda x, w: F.conv_transpose2d(x, w, stride=2, padding=1, output_padding=1),
        randn(2, 3, 4, 5),
        randn(3, 4, 3, 3),
    ),
    "transposed, groups": (
        lambda x, w: F.conv_transpose2d(x, w, groups=2),
        randn(2, 4, 4, 5),
        randn(4, 3, 3, 3),
    ),
    "transposed, 1-d": (lambda x, w: F.conv_transpose1d(x, w, stride=2), randn(2, 3, 4), randn(3, 4, 3)),
    "gradient of a gradient": (
        lambda x, w: fl.gradient(lambda w: (F.conv2d(x, w) ** 3).sum(), w),
        randn(1, 2, 4, 4),
        randn(2, 2, 3, 3),
    ),
    "mapped over examples": (
        lambda x, w: fl.vmap(lambda x: fl.gradient(lambda w: (F.conv2d(x[None], w) ** 2).sum(), w))(x),
        randn(3, 2, 4, 4),
        randn(2, 2, 3, 3),
    ),
    "mapped over weights": (
        lambda x, w: fl.vmap(lambda w: F.conv2d(x, w))(w),
        randn(2, 2, 4, 4),
        randn(3, 2, 2, 3, 3),
    ),
}


def in_place_on_a_view(y):
    y.view(y.shape[0], -1).mul_(2)
    return y


def in_place_after_a_view(y):
    v = y.view(y.shape[0], -1)
    y.relu_()
    return v


def in_place_on_a_column(y):
    y.flatten(2)[:, :, 0].zero_()
    return y


def in_place_permuted(y):
    y.permute(0, 2, 3, 1)[0].zero_()
    return y


# A convolution's result may lie in memory in another way than eagerly, and nothing may depend on that.
AFTER = {
    "view": lambda y: y.view(2, -1),
    "view by channels": lambda y: y.view(2, 2, 2, 3, 4).transpose(1, 2).reshape(2, -1),
    "reshape": lambda y: y.reshape(4, -1) @ y.reshape(4, -1).T,
    "flatten": lambda y: y.flatten()[3:9],
    "squeeze": lambda y: y[:, :, :1, :1].squeeze(-1).squeeze(-1),
    "as_strided": lambda y: y.as_strided((2, 4), (y.stride(0), 1)),
    "strides": lambda y: y * y.stride(1),
    "unfold": lambda y: y.unfold(2, 2, 1).contiguous(),
    "argmax": lambda y: y * y.argmax(),
    "argmin, kept": lambda y: y * y.argmin(keepdim=True) + y.argmax(1).sum(),
    "sort": lambda y: y.flatten().sort()[0],
    "complex": lambda y: torch.view_as_complex(y.reshape(2, -1, 2)).abs(),
    "complex view": lambda y: torch.view_as_complex(y[..., :2].contiguous()).abs(),
    "bits": lambda y: y.view(torch.int64).to(D) * 1e-18 + y.sum(),
    "mask": lambda y: y.masked_fill(y > 0, 1.0),
    "cumulated": lambda y: y.cumsum(1).cumsum(2),
    "in place": lambda y: F.relu(y, inplace=True).flatten(1),
    "in place on a view": in_place_on_a_view,
    "in place after a view": in_place_after_a_view,
    "in place on a column": in_place_on_a_column,
    "in place permuted": in_place_permuted,
    "pool": lambda y: F.max_pool2d(y, (3, 2)).flatten(1),
    "norm and pool": lambda y: F.max_pool2d(F.batch_norm(y, None, None, training=True).relu(), (1, 2)),
    "layer norm": lambda y: F.layer_norm(y, y.shape[1:]),
    "channels last": lambda y: y.to(memory_format=torch.channels_last).reshape(-1),
}


# Others

INDICES = torch.tensor([[0, 2, 2], [1, 0, 3]])
MASK = torch.ones(5, 6, dtype=torch.bool).tril(1)
OTHERS = {
    "batch norm": (lambda x, g, b: F.batch_norm(x, None, None, g, b, True), randn(4, 3), randn(3), randn(3)),
    "batch norm, one channel": (
        lambda x, g: F.batch_norm(x, None, None, g, None, True),
        randn(4, 1, 2, 2),
        randn(1),
    ),
    "batch norm in test mode": (
        lambda x, g, b: F.batch_norm(x, torch.full((3,), 0.1, dtype=D), torch.full((3,), 2.0, dtype=D), g, b),
        randn(4, 3, 2, 2),
        randn(3),
        randn(3),
    ),
    "group norm": (lambda x, g, b: F.group_norm(x, 2, g, b), randn(2, 4, 3, 3), randn(4), randn(4)),
    "layer norm": (lambda x, g, b: F.layer_norm(x, (5,), g, b), randn(2, 3, 5), randn(5), randn(5)),
    "embedding": (lambda w: F.embedding(INDICES, w), randn(5, 4)),
    "embedding with padding": (lambda w: F.embedding(INDICES, w, padding_idx=2), randn(5, 4)),
    "embedding bag": (lambda w: F.embedding_bag(INDICES, w), randn(5, 4)),
    "attention": (
        F.scaled_dot_product_attention,
        randn(2, 2, 5, 4),
        randn(2, 2, 6, 4),
        randn(2, 2, 6, 4, seed=1),
    ),
    "causal attention": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        randn(2, 2, 5, 4),
        randn(2, 2, 5, 4, seed=1),
        randn(2, 2, 5, 4, seed=2),
    ),
    "masked attention": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=MASK),
        randn(2, 2, 5, 4),
        randn(2, 2, 6, 4),
        randn(2, 2, 6, 4, seed=1),
    ),
    "powers": (
        lambda x, p: x.abs() ** p + x**2 + 2.0**x + x**3.0 + x.abs() ** 0.5,
        randn(5),
        randn(5, seed=1),
    ),
    "power by a number": (lambda x, p: x.abs() ** p + p * x / (p + 3), randn(5), randn(1)[0]),
    "numbers alone": (
        lambda p, q: (p.exp() + q * p).tanh() * torch.ones(5, dtype=D) + q,
        randn(1)[0],
        randn(1, seed=1)[0],
    ),
    "products": (lambda a, b, c: F.linear(a, b, c) @ b, randn(20, 30), randn(40, 30), randn(40)),
    "batches of products": (lambda a, b: a @ b, randn(3, 20, 30), randn(3, 30, 4)),
    "a vector": (lambda a, b: a @ b, randn(20, 30), randn(30)),
    "einsum": (lambda a, b: torch.einsum("bij,bjk->bk", a, b), randn(2, 3, 4), randn(2, 4, 5)),
    "cumulated": (
        lambda a: a.cumsum(0) + a.cumprod(1) + a.sort(0)[0] + a.flip(1) + a.roll(1, 0),
        randn(4, 4),
    ),
    "softmax": (
        lambda a: a.logsumexp(1) + a.softmax(1)[:, 0] + F.cross_entropy(a, torch.arange(4)),
        randn(4, 4),
    ),
    "gather and scatter": (
        lambda a: a.gather(1, INDICES).sum() + torch.zeros(2, 4, dtype=D).scatter_add(1, INDICES, a[:, :3]),
        randn(2, 4),
    ),
    "index_put": (
        lambda a: torch.zeros(4, 4, dtype=D).index_put((torch.tensor([0, 0, 1]),), a, accumulate=True),
        randn(3, 4),
    ),
    "solve": (lambda a: torch.linalg.solve(a + 5 * torch.eye(4, dtype=D), a), randn(4, 4)),
    "singular values": (lambda a: torch.linalg.svd(a)[1], randn(4, 4)),
    "fft": (lambda a: torch.fft.rfft(a).abs(), randn(8)),
    "complex numbers": (lambda a: torch.view_as_real(torch.view_as_complex(a) ** 2).sum(-1), randn(4, 2)),
    "lstm": (
        lambda x, w, u, b, c: torch.lstm(
            x,
            (torch.zeros(1, 2, 4, dtype=D), torch.zeros(1, 2, 4, dtype=D)),
            (w, u, b, c),
            True,
            1,
            0.0,
            False,
            False,
            False,
        )[0],
        randn(5, 2, 3),
        randn(16, 3),
        randn(16, 4),
        randn(16),
        randn(16, seed=1),
    ),
    "interpolate": (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), randn(1, 2, 3, 3)),
    "grid": (
        lambda x, g: F.grid_sample(x, g.tanh(), align_corners=True),
        randn(1, 2, 3, 3),
        randn(1, 4, 4, 2),
    ),
    "pad": (lambda x: F.pad(x, (1, 2, 0, 1), mode="reflect"), randn(1, 2, 4, 4)),
    "pixel shuffle": (lambda x: F.pixel_shuffle(x, 2), randn(1, 4, 3, 3)),
    "fold": (lambda x: F.fold(F.unfold(x, 2), (4, 4), 2), randn(1, 2, 4, 4)),
    "half": (lambda x: (x.half() @ x.half().T).to(D), randn(4, 4).round()),
    "nothing to train": (lambda x, y: x.detach() * y, randn(3), randn(3, seed=1)),
}
OF_REAL_NUMBERS = {
    "complex": lambda x: torch.complex(x, x[:1] * 2).abs(),
    "polar": lambda x: torch.polar(x, x).sum().abs(),
    "parts": lambda x: torch.view_as_real(torch.complex(x, x * x)).square().sum(),
}


def pool(options):
    return lambda x: F.max_pool2d(x, **options)


def convolution(options):
    return lambda x, w, b: F.conv2d(x, w, b, **options)


def after_a_convolution(after):
    return lambda x, w: after(F.conv2d(x, w) * 1)


#: By name a function, and the tensors that it takes.
CASES = {
    **{
        f"a max pool of {shape}: {name}": (pool(options), randn(*shape))
        for name, options in POOLS.items()
        for shape in IMAGES
    },
    **{
        f"a tiling max pool of other inputs: {name}": (pool({"kernel_size": 2}), x)
        for name, x in POOL_INPUTS.items()
    },
    **{
        f"a max pool with a window of {n}, for which the compiler has no kernel": (
            pool({"kernel_size": n}),
            randn(2, 3, 16, 2 * n)[:, :, : 16 // n * n],
        )
        for n in (5, 6, 8)
    },
    **{f"another pool: {name}": (f, randn(2, 2, 8, 8)) for name, f in OTHER_POOLS.items()},
    **{
        f"a convolution: {name}": (convolution(options), randn(*x), randn(*w), randn(w[0]))
        for name, (x, w, options) in CONVOLUTIONS.items()
    },
    **{
        f"a convolution of other strides: {name}": (F.conv2d, *tensors)
        for name, tensors in CONVOLUTIONS_OF_OTHER_STRIDES.items()
    },
    **{f"another convolution: {name}": case for name, case in OTHER_CONVOLUTIONS.items()},
    **{
        f"after a convolution: {name}": (after_a_convolution(f), randn(2, 3, 5, 6), randn(4, 3, 3, 3))
        for name, f in AFTER.items()
    },
    **OTHERS,
    **{
        f"of shape {shape}": (lambda x: (x * 2).tanh() + x.sum(), torch.full(shape, 0.5, dtype=D))
        for shape in ((0,), (0, 3), (3, 0), ())
    },
    **{
        f"a complex number made of real ones: {name}": (f, randn(3) + 2)
        for name, f in OF_REAL_NUMBERS.items()
    },
}


def require_same(cases):
    """Value and all gradients of each case, with a different weight for each entry of the result."""

    def both(f, args):
        def loss(*args):
            y = f(*args)
            return (y * torch.arange(y.numel(), dtype=D).reshape(y.shape).sin()).sum(), y

        return fl.withgradient(loss, *args, argnums=tuple(range(len(args))))

    def each(inputs):
        return {name: both(f, inputs[name]) for name, (f, *_) in cases.items()}

    inputs = {name: args for name, (_, *args) in cases.items()}
    before = fl.fmap(torch.clone, inputs)
    compiled, eager = fl.jit(each)(inputs), each(inputs)
    for name in cases:
        (found, grads), (expected, wanted) = compiled[name], eager[name]
        for a, b in zip((*found, *grads), (*expected, *wanted), strict=True):
            assert (a is None) == (b is None), name
            if a is not None:
                assert (a.dtype, a.shape) == (b.dtype, b.shape), name
                assert torch.allclose(a, b, rtol=1e-9, atol=1e-11), name
        assert all(map(torch.equal, inputs[name], before[name])), name


@pytest.mark.parametrize("engine", ["recorded"], indirect=True)
@pytest.mark.parametrize("name", CASES)
def test_an_operation_is_that_of_eager(name):
    require_same({name: CASES[name]})


@pytest.mark.parametrize("engine", [pytest.param("compiled", marks=pytest.mark.slow)], indirect=True)
@pytest.mark.parametrize("first", range(0, len(CASES), 10))
def test_compiled_operations_are_those_of_eager(first):
    """In tens, which compile in one graph in the time of two or three."""
    require_same(dict(itertools.islice(CASES.items(), first, first + 10)))


def test_a_max_pool_passes_nan_on():
    x = randn(1, 2, 4, 4)
    x[0, 0, 1, 1] = float("nan")
    assert torch.equal(fl.jit(lambda x: F.max_pool2d(x, 2))(x).isnan(), F.max_pool2d(x, 2).isnan())


@pytest.mark.parametrize("find", [torch.argmax, torch.argmin])
def test_where_the_largest_entry_of_all_stands_in_other_strides(find):
    for x in (
        randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        randn(4, 3).T,
        randn(2, 3, 4).permute(2, 0, 1),
    ):
        assert fl.jit(lambda x: find(x * 1.5))(x) == find(x)


def test_a_small_network_of_images():
    model = fl.f64(
        fl.Chain(
            fl.Conv((3, 3), 1, 4, fl.relu, pad=1),
            fl.BatchNorm(4),
            fl.MaxPool((2, 2)),
            fl.Conv((3, 3), 4, 2, fl.relu),
            fl.MeanPool((2, 2)),
            fl.flatten,
            fl.Dense(2, 3),
        )
    )
    state = fl.setup(fl.Momentum(0.1), model)
    x, y = randn(5, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1])

    def step(model, state):
        value, grads = fl.withgradient(lambda m: fl.losses.logitcrossentropy(m(x), y), model)
        return *fl.update(state, model, grads), value

    compiled = eager = model, state
    jitted = fl.jit(step)
    for _ in range(3):
        *compiled, found = jitted(*compiled)
        *eager, expected = step(*eager)
        assert torch.allclose(found, expected)
    assert fl.tree.allclose(compiled, eager, rtol=1e-9, atol=1e-11)
