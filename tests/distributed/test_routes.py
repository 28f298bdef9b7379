"""Functions of torch over a mesh: numbers and derivatives of one process, and no needless traffic."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

import fluxlike as fl
from fluxlike import distributed as d
from fluxlike.placement.mesh.calls import on_all_rows, on_rows
from fluxlike.placement.mesh.reduce import placed_as
from fluxlike.placement.mesh.rowwise import common
from fluxlike.placement.mesh.unknown import explained
from tests.distributed.agreeing import differences, traffic
from tests.distributed.ranks import run

ORDER = torch.tensor([2, 0, 3, 1, 5, 4])
EYE = torch.eye(4, dtype=torch.float64)


def changed(change):
    """A function that changes a copy of its argument in place, and returns it."""

    def run(x):
        y = x * 1
        change(y)
        return y

    return run


def assigned(index, value):
    return changed(lambda y: y.__setitem__(index, value))


def matrices(x):
    return x[:, :, None] * x[:, None] + EYE


def in_place(name):
    return lambda x: getattr(F, name)(x * 1, inplace=True) * 2


def heads(x):
    return [x.reshape(6, 2, 2, 1) * i for i in (1, 2, 3)]


IN_PLACE = "celu elu hardsigmoid hardswish hardtanh leaky_relu mish relu relu6 selu silu"
ACTIVATIONS = IN_PLACE + " gelu glu hardshrink logsigmoid softplus softshrink softsign tanhshrink"

#: Functions that compute each row by itself.
OF_ROWS = {
    **{name: getattr(F, name) for name in ACTIVATIONS.split()},
    **{f"{name} in place": in_place(name) for name in IN_PLACE.split()},
    "softmax": lambda x: x.softmax(1),
    "prelu": lambda x: F.prelu(x, torch.tensor([0.3]).double()),
    "cumsum": lambda x: x.cumsum(1),
    "cumprod": lambda x: x.cumprod(1),
    "prod": lambda x: x.prod(1),
    "cummax": lambda x: x.cummax(1)[0],
    "sort": lambda x: x.sort(1)[0],
    "topk": lambda x: x.topk(2, 1)[0],
    "median": lambda x: x.median(1)[0],
    "norm": lambda x: x.norm(dim=1),
    "var": lambda x: x.var(1),
    "normalize": lambda x: F.normalize(x),
    "layer_norm": lambda x: F.layer_norm(x, (4,)),
    "rms_norm": lambda x: F.rms_norm(x, (4,)),
    "group_norm": lambda x: F.group_norm(x, 2),
    "bmm": lambda x: torch.bmm(x[:, :, None], x[:, None]),
    "einsum": lambda x: torch.einsum("ni,nj->nij", x, x),
    "cosine_similarity": lambda x: F.cosine_similarity(x, x + 1),
    "bilinear": lambda x: F.bilinear(x, x, torch.arange(32).double().reshape(2, 4, 4)),
    "unfold": lambda x: x.unfold(1, 2, 1),
    "pad": lambda x: F.pad(x, (1, 2)),
    "pad, reflected": lambda x: F.pad(x, (1, 2), mode="reflect"),
    "pad, circular": lambda x: F.pad(x[:, None], (1, 2), mode="circular"),
    "index": lambda x: x[:, ORDER % 4],
    "slice": lambda x: x[:, 1:3],
    "gather": lambda x: x.gather(1, x.argmax(1, keepdim=True)),
    "one_hot": lambda x: F.one_hot(x.argmax(1), 4),
    "searchsorted": lambda x: torch.searchsorted(x.sort(1)[0], x * 1),
    "cat": lambda x: torch.cat([x, torch.ones(6, 1).double()], 1),
    "stack": lambda x: torch.stack([x, x + 1]),
    "unbind": lambda x: x.unbind(1),
    "chunk": lambda x: x.chunk(2, 1),
    "one chunk": lambda x: x.chunk(3, -1)[0],
    "one of a split": lambda x: torch.split(x, split_size_or_sections=[1, 3], dim=1)[1],
    "repeat": lambda x: x.repeat_interleave(2, 1),
    "reshape": lambda x: x.reshape(12, 2),
    "transpose": lambda x: x.T.contiguous(),
    "masked_fill": lambda x: x.masked_fill(x > 0, 2.0),
    "where": lambda x: torch.where(torch.arange(6)[:, None] < 3, x, -x),
    "assignment of a column": assigned((slice(None), 0), 3.0),
    "assignment by a mask": changed(lambda y: y.__setitem__(y > 0, 3.0)),
    "polar": lambda x: torch.polar(x.abs(), x).real,
    "fft": lambda x: torch.fft.fft(x).abs(),
    "stft": lambda x: torch.stft(
        x, 4, window=torch.ones(4).double(), center=False, return_complex=True
    ).abs(),
    "inv": lambda x: torch.linalg.inv(matrices(x)),
    "solve": lambda x: torch.linalg.solve(matrices(x), x[:, :, None]),
    "cholesky": lambda x: torch.linalg.cholesky(matrices(x)),
    "slogdet": lambda x: torch.linalg.slogdet(matrices(x))[1],
    "svdvals": lambda x: torch.linalg.svdvals(matrices(x) + torch.diag(torch.arange(4.0)).double()),
    "matrix_exp": lambda x: torch.matrix_exp(matrices(x) / 9),
    "conv1d": lambda x: F.conv1d(x[:, None], torch.arange(4).double().reshape(2, 1, 2)),
    "max_pool": lambda x: F.max_pool1d(x[:, None], 2),
    "interpolate": lambda x: F.interpolate(x[:, None], scale_factor=2),
    "grid_sample": lambda x: F.grid_sample(
        x.reshape(6, 1, 2, 2), x.reshape(6, 1, 2, 2).tanh(), align_corners=False
    ),
    "affine_grid": lambda x: F.affine_grid(
        torch.cat([x, x[:, :2]], 1).reshape(6, 2, 3), (6, 1, 3, 3), align_corners=False
    ),
    "attention with a mask of examples": lambda x: F.scaled_dot_product_attention(
        *heads(x), (x[:, :2] > 0)[:, None, None] | (torch.arange(2) == 0)
    ),
    "attention with a mask of one example": lambda x: F.scaled_dot_product_attention(
        *heads(x), torch.ones(1, 1, 2, 2).double().tril()
    ),
    "attention of three axes": lambda x: F.scaled_dot_product_attention(*(h[:, :, 0] for h in heads(x))),
    "attention with a mask of heads": lambda x: F.multi_head_attention_forward(
        *(x.reshape(6, 2, 2).transpose(0, 1),) * 3, 2, 2, torch.arange(12).double().reshape(6, 2), None, None,
        None, False, 0.0, EYE[:2, :2], None, attn_mask=x.detach().repeat_interleave(2, 0).reshape(12, 2, 2),
    )[0].transpose(0, 1),
    "max_unpool": lambda x: F.max_unpool1d(*F.max_pool1d(x[:, None], 2, return_indices=True), 2),
    "attention with one mask": lambda x: F.scaled_dot_product_attention(
        *heads(x), torch.ones(2, 2).double().tril()
    ),
    "local_response_norm": lambda x: F.local_response_norm(x[:, :, None], 2),
}  # fmt: skip

#: Functions that mix rows.
MIXING = {
    "mean": torch.mean,
    "sum": lambda x: x.sum(0),
    "prod": lambda x: x.prod(0),
    "prod of all": torch.prod,
    "max": torch.max,
    "amax": lambda x: x.amax(0),
    "var": lambda x: x.var(0),
    "std of all": torch.std,
    "norm of all": torch.linalg.vector_norm,
    "median": torch.median,
    "quantile": lambda x: x.quantile(0.3),
    "quantiles": lambda x: x.quantile(torch.tensor([0.1, 0.9]).double(), 0),
    "logsumexp": lambda x: x.logsumexp(0),
    "softmax": lambda x: x.softmax(0),
    "cumsum": lambda x: x.cumsum(0),
    "cumprod": lambda x: x.cumprod(0),
    "cummax": lambda x: x.cummax(0)[0],
    "sort": lambda x: x.sort(0)[0],
    "argmax": lambda x: x.argmax(0),
    "any": lambda x: (x > 1).any(0),
    "all": lambda x: ~(x > -9).all(),
    "products of rows": lambda x: x @ x.T,
    "row times a matrix": lambda x: x[1] @ x.T,
    "row times matrices": lambda x: torch.matmul(x[1], x.reshape(3, 4, 2)),
    "plain vector times a matrix": lambda x: torch.ones(4).double() @ x.T,
    "matrix times a row": lambda x: x @ x[1],
    "linear of a row": lambda x: F.linear(x[1], x, x[:, 0]),
    "similarities to the mean": lambda x: F.cosine_similarity(x, x.mean(0, keepdim=True)),
    "chunks of rows": lambda x: x.chunk(2)[0] * x.chunk(2)[1],
    "some rows of a split": lambda x: x.split([1, 5])[1],
    "one of rows unbound": lambda x: x.unbind()[2],
    "covariance": lambda x: torch.cov(x.T),
    "correlation": lambda x: torch.corrcoef(x.T),
    "trace": lambda x: x.trace(),
    "distances": lambda x: torch.cdist(x, 2 * x),
    "distances to themselves": lambda x: torch.cdist(x, x),
    "distances to themselves, by name": lambda x: torch.cdist(x1=x, x2=x, p=1.0),
    "distances in a batch": lambda x: torch.cdist(x[:, :, None], x[:, :, None] + 1),
    "distances of pairs": lambda x: F.pdist(x),
    "similarities of pairs": lambda x: F.cosine_similarity(x[:, None], x[None], dim=2),
    "batch_norm": lambda x: F.batch_norm(x, None, None, training=True),
    "flip": lambda x: x.flip(0),
    "roll": lambda x: x.roll(1, 0),
    "rows by numbers": lambda x: x[ORDER],
    "rows by a list": lambda x: x[[2, 0, 5]],
    "columns by a list": lambda x: x[:, [2, 0]],
    "rows by a list of choices": lambda x: x[[True, False, True, True, False, False]],
    "entries by lists": lambda x: x[[2, 0], [1, 3]],
    "rows by a mask": lambda x: x[x[:, 0] > 0],
    "entries by a mask": lambda x: x[x > 0],
    "entries by rows and columns": lambda x: x[torch.arange(6), ORDER % 4],
    "slice": lambda x: x[1:5],
    "one row": lambda x: x[4],
    "take": lambda x: x.take(torch.tensor([0, 5, 20])),
    "unbind": lambda x: x.unbind(0),
    "loop over rows": lambda x: [row.sin() for row in x],
    "cat of rows": lambda x: torch.cat([torch.ones(1, 4).double(), x]),
    "scatter_add": lambda x: torch.zeros(3, 4).double().scatter_add(0, (ORDER % 3)[:, None].expand(6, 4), x),
    "scatter_reduce": lambda x: torch.zeros(3, 4).double().scatter_reduce(
        0, (ORDER % 3)[:, None].expand(6, 4), x, "amax", include_self=False
    ),
    "index_add": lambda x: torch.zeros(3, 4).double().index_add(0, ORDER % 3, x),
    "reshape across ranks": lambda x: x.reshape(3, 8) if x.shape[0] == 6 else x,
    "reshape in pairs": lambda x: x.reshape(3, 2, 4),
    "assignment of a row": assigned(0, 3.0),
    "unique": lambda x: x.detach().round().unique(),
    "nonzero": lambda x: (x > 0).nonzero(),
    "bincount": lambda x: x.abs().long().flatten().bincount(minlength=5),
    "histogram": lambda x: x.detach().histc(4, -2, 2),
    "one_hot of as many classes as there are": lambda x: F.one_hot((x[:, 0] * 3).abs().long()),
    "attention of rows": lambda x: F.scaled_dot_product_attention(x, x, x),
    "attention of rows to examples": lambda x: F.scaled_dot_product_attention(
        x, *(x.reshape(2, 3, 4),) * 2
    ),
    "attention of examples to several of each": lambda x: F.scaled_dot_product_attention(
        x.reshape(6, 2, 2), *(x.reshape(6, 1, 2, 2) * x.reshape(6, 2, 2),) * 2
    ),
    "unbind by name": lambda x: torch.unbind(input=x),
    "assignment of a column of rows": assigned((slice(None), 0), ORDER.double()),
    "table of gradients by how often": lambda x: F.embedding(
        x.argmax(1), x.sum(0)[:, None] * x.sum(0), scale_grad_by_freq=True
    ),
    "bags of gradients by how often": lambda x: F.embedding_bag(
        x.argsort(1)[:, :2], x.sum(0)[:, None] * x.sum(0), scale_grad_by_freq=True
    ),
    "bags in a row": lambda x: F.embedding_bag(
        x.argmax(1), torch.arange(8.0).double().reshape(4, 2), torch.tensor([0, 1, 4])
    ),
    "least squares": lambda x: torch.linalg.lstsq(x, x[:, :1] * 2).solution,
    "unbatched conv1d": lambda x: F.conv1d(x, torch.arange(24).double().reshape(2, 6, 2)),
    "loss that reads a number": lambda x: x.square().mean() / float(x.abs().sum()),
    "format": lambda x: f"{x.mean():.6f}",
    "length": len,
}  # fmt: skip


def functions(table):
    """What each function of a table does otherwise."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    x = torch.randn(6, 4, dtype=torch.float64)
    over, wrong = d.shard_batch(x, d.mesh()), {}
    for name, f in (OF_ROWS if table == "rows" else MIXING).items():
        expected = f(x)
        found = differences(f(over), expected)
        if table == "rows":
            counts = traffic(lambda: f(over))
            found += [f"collectives {counts}"] if counts else []
            found += [
                f"{y.placements}"
                for y in fl.fleaves(f(over))
                if not any(isinstance(p, Shard) for p in y.placements)
            ]
        floating = [y for y in fl.fleaves(expected) if y.is_floating_point()]
        if floating:

            def loss(x):
                return 0 * x.sum() + sum(y.sin().square().mean() + y.sum() / 7 for y in fl.fleaves(f(x)))

            found += differences(fl.gradient(loss, over), fl.gradient(loss, x), 1e-9)
        if found:
            wrong[name] = found
    return wrong


@pytest.mark.parametrize("ranks", [2, 3])
def test_functions_of_rows_are_those_of_one_process_and_send_nothing(ranks):
    assert run(functions, ranks, "rows") == [{}] * ranks


@pytest.mark.parametrize("ranks", [2, 3])
def test_functions_that_mix_rows_are_those_of_one_process(ranks):
    assert run(functions, ranks, "mixing") == [{}] * ranks


def pieces():
    """The collectives of what cuts rows apart, and of what cuts each row."""
    x = d.shard_batch(torch.randn(6, 4), d.mesh())
    of_rows = [x.unbind, lambda: list(x), lambda: x.chunk(3), lambda: x.split([1, 5])]
    of_columns = [lambda: x.unbind(1), lambda: x.chunk(2, 1), lambda: x.split(1, -1)]
    return [traffic(f) for f in of_rows], [traffic(f) for f in of_columns]


def test_rows_that_are_cut_apart_are_gathered_once_however_many_there_are():
    assert run(pieces, 2) == [([{"all_gather": 1}] * 4, [{}] * 3)] * 2


def in_two_orders():
    """Each function twice, in orders of chance, so that none leaves a plan that another one takes."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    x = torch.randn(6, 4, dtype=torch.float64)
    over, tables = d.shard_batch(x, d.mesh()), {"rows": OF_ROWS, "mixing": MIXING}
    names = [(table, name) for table in tables for name in tables[table]]
    wrong = {}
    for i in [*torch.randperm(len(names)), *torch.randperm(len(names))]:
        table, name = names[i]
        found = differences(tables[table][name](over), tables[table][name](x))
        if found:
            wrong[name] = found
    return wrong


def test_functions_are_right_in_whatever_order_they_are_called():
    assert run(in_two_orders, 2) == [{}, {}]


PENDING = {
    "tensor": lambda total, other: total + other,
    "number": lambda total, other: total + 1.0,
    "number first": lambda total, other: 1.0 + total,
    "torch.add": lambda total, other: torch.add(total, 2),
    "torch.add by name": lambda total, other: torch.add(input=total, other=2),
    "minus a number": lambda total, other: total - 1.0,
    "minus a tensor": lambda total, other: total - other,
    "number minus": lambda total, other: 1.0 - total,
    "entries by a list": lambda total, other: total[[2, 0]],
    "norm": lambda total, other: total.norm(),
    "norm of one": lambda total, other: torch.linalg.vector_norm(total, 1),
    "normalize": lambda total, other: F.normalize(total, dim=0),
    "distance": lambda total, other: torch.dist(total, other),
    "threshold": lambda total, other: F.threshold(total, 0.1, 5.0),
    **{
        name: lambda total, other, change=change: changed(change)(total)
        for name, change in {
            "fill_": lambda y: y.fill_(3),
            "fill_ with infinity": lambda y: y.fill_(torch.inf),
            "torch.fill_": lambda y: torch.fill_(y, 3),
            "zero_": lambda y: y.zero_(),
            "add_ of a number": lambda y: y.add_(1.0),
            "add_ of a tensor": lambda y: y.add_(torch.ones(4).double(), alpha=2),
            "add_ of a mean": lambda y: y.add_(y.mean()),
            "mul_": lambda y: y.mul_(-2),
            "mul_ by itself": lambda y: y.mul_(y * 1),
            "div_": lambda y: y.div_(2),
            "div_ rounded": lambda y: y.div_(0.3, rounding_mode="floor"),
            "neg_": lambda y: y.neg_(),
            "clamp_": lambda y: y.clamp_(min=0.1),
            "relu in place": lambda y: F.relu(y, inplace=True),
            "relu6 in place": lambda y: F.relu6(y, inplace=True),
            "masked_fill_": lambda y: y.masked_fill_(y > 0, 2.0),
            "copy_": lambda y: y.copy_(torch.arange(4.0)),
            "copy_ of a mean": lambda y: y.copy_(y.mean()),
            "assignment": lambda y: y.__setitem__(1, 3.0),
            "**=": lambda y: y.__ipow__(2),
            "uniform_": lambda y: y.uniform_(1, 1 + 1e-13),
            "normal_": lambda y: y.normal_(1, 0),
        }.items()
    },
}  # fmt: skip

REDUCED = {
    "sum": lambda x: x.sum(0),
    "mean": lambda x: x.mean(0),
    "greatest": lambda x: x.amax(0),
}


def pending_sums(names):
    """What each function does otherwise of a sum, a mean and a maximum over the rows of all ranks."""
    torch.manual_seed(0)
    x = torch.randn(6, 4, dtype=torch.float64)
    over, wrong = d.shard_batch(x, d.mesh()), {}
    for name in names:
        for kind, reduced in REDUCED.items():

            def call(x, f=PENDING[name], reduced=reduced):
                return f(reduced(x), x[:2].sum(0))

            def loss(x, call=call):
                return call(x).sin().sum() + x.square().sum()

            found = differences(call(over), call(x))
            found += differences(fl.gradient(loss, over), fl.gradient(loss, x))
            if found:
                wrong[name, kind] = found
    return wrong


@pytest.mark.parametrize("names", [list(PENDING), list(reversed(PENDING))], ids=["forward", "backward"])
def test_a_pending_sum_is_changed_and_measured_once(names):
    assert run(pending_sums, 2, names) == [{}, {}]


def kept():
    x = d.shard_batch(torch.ones(6, 4), d.mesh())
    total = x.sum(0)
    row, same = total[1:], total.fill_(3.0)
    assert same is total
    total += x.sum(0)
    counts = traffic(lambda: total.mul_(2).add_(x.sum(0)))
    with pytest.raises(RuntimeError, match=r"fill_ into .*write what gives a new tensor"):
        x.norm(dim=0).fill_(3.0)
    return row.full_tensor().tolist(), counts


def test_a_pending_sum_that_is_written_into_keeps_its_views_and_sums_of_sums_send_nothing():
    assert run(kept, 2) == [([24.0] * 3, {})] * 2


def drawn_into():
    x = d.shard_batch(torch.ones(6, 4), d.mesh())
    slope = fl.gradient(lambda x: (x * 2).uniform_().sum(), x)
    w = x.clone().requires_grad_()
    y = x * 1
    z = w * y
    y.uniform_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()
    return float(slope.abs().sum())


def test_autograd_knows_of_numbers_drawn_into_a_tensor():
    assert run(drawn_into, 2) == [0.0, 0.0]


def maximum_for_a_gradient():
    mesh = d.mesh()
    greatest = DTensor.from_local(torch.ones(1) * mesh.get_local_rank(), mesh, [Partial("max")])
    weight = fl.to_device({"w": torch.zeros(1)}, mesh, d.replicate())["w"]
    (found,) = placed_as([greatest], [weight])
    return found.full_tensor().tolist()


def test_what_is_pending_beside_sums_is_brought_to_its_parameter_by_its_own_rule():
    assert run(maximum_for_a_gradient, 3) == [[2.0]] * 3


def test_rows_are_divided_along_two_axes_of_a_mesh_only_where_both_divide_them():
    mesh = SimpleNamespace(ndim=2, size=lambda i: 2)
    for n, second in ((8, Shard(0)), (6, Replicate())):
        x = SimpleNamespace(shape=(n, 4), device_mesh=mesh, placements=[Shard(0), Shard(0)])
        assert common([x], 1) == [Shard(0), second]


def narrow(dtype, affine):
    torch.manual_seed(0)
    x = (2 * torch.randn(6, 4) + 30).bfloat16()  # whose mean bfloat16 can not hold
    values = {"weight": torch.rand(4).to(dtype), "bias": torch.randn(4).to(dtype)}
    state = {"mean": torch.zeros(4, dtype=dtype), "var": torch.ones(4, dtype=dtype)}

    def normalised(x, values, mean, var):
        return F.batch_norm(x, mean, var, **(values if affine else {}), training=True)

    def loss(x, values, mean, var):
        return normalised(x, values, mean, var).float().sin().sum()

    over = d.shard_batch(x, d.mesh()), *fl.to_device((values, state), d.mesh(), d.replicate())
    results = []
    for rows, values, state in (over, (x, values, state)):  # noqa: B020
        grads = fl.gradient(lambda rows, values: loss(rows, values, **state), rows, values, argnums=(0, 1))
        results.append((normalised(rows, values, **state), state, grads))
    return differences(*results, 3e-2 if dtype is torch.float32 else 0.1)  # gradients that are rounded twice


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batch_norm_takes_rows_of_a_narrow_dtype_beside_weights_of_float32(dtype, affine):
    assert run(narrow, 2, dtype, affine) == [[], []]


def network(kind):
    convolution = fl.Conv((3, 3), 2, 4, fl.tanh, pad=1)
    return {
        "perceptron": lambda: (fl.Chain(fl.Dense(4, 8, fl.tanh), fl.Dense(8, 3)), torch.randn(6, 4)),
        "batchnorm": lambda: (
            fl.Chain(convolution, fl.BatchNorm(4), fl.MaxPool((2, 2)), fl.GlobalMeanPool(), fl.Dense(4, 3)),
            torch.randn(6, 2, 6, 6),
        ),
        "groupnorm": lambda: (
            fl.Chain(convolution, fl.GroupNorm(4, 2), fl.GlobalMeanPool(), fl.Dense(4, 3)),
            torch.randn(6, 2, 6, 6),
        ),
        "attention": lambda: (
            fl.Chain(fl.Dense(4, 4), fl.MultiHeadAttention(4, 2), lambda x: x.mean(1), fl.Dense(4, 3)),
            torch.randn(6, 5, 4),
        ),
        "LSTM": lambda: (fl.Chain(fl.LSTM(4, 5), lambda x: x[:, -1], fl.Dense(5, 3)), torch.randn(6, 5, 4)),
    }[kind]()  # fmt: skip


def classified(model, x, y):
    return F.cross_entropy(model(x), y)


def penalised(model, x, y):
    slope = fl.gradient(lambda x: model(x).square().sum(), x)
    return classified(model, x, y) + (slope.flatten(1).norm(dim=1) - 1).square().mean()


def flatness(model, x, y):
    return sum(g.square().sum() for g in fl.trainables(fl.gradient(classified, model, x, y)))


class Squared(torch.autograd.Function):
    """A function with a derivative of its own, whose backward pass calls a function that has a route."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, g):
        return F.relu6(g) * 0 + g * 2 * ctx.saved_tensors[0]


SECOND = {
    "in test mode": lambda m, x, y: m(x),
    "without gradients": lambda m, x, y: torch.no_grad()(m)(x),
    "in inference mode": lambda m, x, y: torch.inference_mode()(lambda: m(x).sum().item())(),
    "of the input": lambda m, x, y: fl.gradient(lambda x: m(x).square().sum(), x),
    "gradient penalty": lambda m, x, y: fl.gradient(penalised, m, x, y),
    "norm of a gradient": lambda m, x, y: fl.gradient(flatness, m, x, y),
    "hvp": lambda m, x, y: fl.hvp(lambda m: classified(m, x, y), m, v=fl.fmap(torch.ones_like, m)),
    "updates": lambda m, x, y: fl.withupdates(lambda m, x: m(x), m, x),
    "function with its own derivative": lambda m, x, y: fl.gradient(
        lambda m, x, y: F.cross_entropy(Squared.apply(m(x)), y), m, x, y
    ),
}  # fmt: skip


def derivatives(kind):
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    (model, x), y = network(kind), torch.randint(3, (6,))
    wrong = {}
    for plan in (d.replicate(), d.shard()):
        over = fl.to_device(model, d.mesh(), plan), *d.shard_batch((x, y), d.mesh())
        for name, f in SECOND.items():
            found = differences(f(*over), f(model, x, y), 1e-9)
            if found:
                wrong[name] = found
    return wrong


@pytest.mark.parametrize("kind", ["perceptron", "batchnorm", "groupnorm", "attention", "LSTM"])
def test_second_derivatives_and_calls_without_gradients_are_those_of_one_process(kind):
    assert run(derivatives, 2, kind) == [{}, {}]


def by_rows():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    (model, x), y = network("groupnorm"), torch.randint(3, (6,))
    over = fl.to_device(model, d.mesh(), d.shard()), *d.shard_batch((x, y), d.mesh())

    def each(model, x, y):
        return fl.per_example_gradient(classified, model, x, y)

    def traces(model, x, y):
        return torch.vmap(lambda row: model(row[None])[0])(x)

    wrong = differences(on_rows(each, *over), each(model, x, y))
    wrong += differences(on_rows(traces, *over), traces(model, x, y))
    wrong += differences(on_all_rows(traces, *over), traces(model, x, y))
    for call in (on_rows, on_all_rows):
        found = fl.gradient(lambda m, x, y: call(traces, m, x, y).square().mean(), *over, argnums=(0, 1))
        wrong += differences(
            found, fl.gradient(lambda *args: traces(*args).square().mean(), model, x, y, argnums=(0, 1))
        )
    assert all(isinstance(g.placements[0], Shard) for g in fl.trainables(on_rows(each, *over)))
    return wrong


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_function_on_the_rows_of_each_rank_and_on_all_rows_is_that_of_one_process(ranks):
    assert run(by_rows, ranks) == [[]] * ranks


def refused():
    x = d.shard_batch(torch.randn(6, 4), d.mesh())
    with pytest.raises(ValueError, match="returned one number for all rows"):
        on_rows(torch.sum, x)
    with pytest.raises(ValueError, match=r"of 6 and of 4 rows"):
        on_rows(torch.add, x, d.shard_batch(torch.randn(4, 4), d.mesh()))
    with pytest.raises(ValueError, match="no tensor among the arguments is over a mesh; call sum"):
        on_rows(torch.sum, torch.ones(2))
    with pytest.raises(TypeError, match=r"make x from data over the mesh, such as data\.new_zeros"):
        torch.zeros(6, 4)[:, 0] = x.requires_grad_()[:, 0]


def test_what_can_not_be_said_of_rows_is_refused():
    run(refused, 2)


def unknown():
    x = d.shard_batch(torch.randn(6, 4), d.mesh())
    try:
        x.as_strided((3, 4), (4, 1))
    except (RuntimeError, NotImplementedError) as error:
        found = error if "on_rows" in str(error) else explained(error, torch.Tensor.as_strided, (x,), {})
        return str(found)
    raise AssertionError("as_strided is known")


def test_a_function_nobody_knows_is_an_error_that_names_it_and_what_to_write():
    for text in run(unknown, 2):
        assert "as_strided" in text
        assert "(6, 4)" in text
        assert "Shard(dim=0)" in text or "S(0)" in text
        assert "on_rows(f, model, x)" in text
    assert explained(RuntimeError("something else")) is None


def with_two_axes(table):
    """Rows divided along one axis of the mesh, and whole along the other."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    x = torch.randn(6, 4, dtype=torch.float64)
    over = d.shard_batch(x, d.mesh(data=2, model=2))
    assert isinstance(over, DTensor)
    return {
        name: found
        for name, f in (OF_ROWS if table == "rows" else MIXING).items()
        if (found := differences(f(over), f(x)))
    }


@pytest.mark.slow
@pytest.mark.parametrize("table", ["rows", "mixing"])
def test_functions_are_right_on_a_mesh_of_two_axes(table):
    assert run(with_two_axes, 4, table) == [{}] * 4
