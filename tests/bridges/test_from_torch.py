"""`from_torch`: a torch module as a tree, whose calls run the module's own forward."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

import fluxlike as fl


def assert_unchanged(module, before):
    now = module.state_dict()
    assert list(now) == list(before)
    for name, x in before.items():
        assert torch.equal(now[name], x), name


def snapshot(module):
    return {name: x.clone() for name, x in module.state_dict().items()}


class Net(nn.Module):
    """Convolution, normalisation, two inputs, a keyword, a dict of outputs."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
        self.register_buffer("shift", torch.tensor(0.5))

    def forward(self, x, bias=None, *, scale=1.0):
        h = torch.relu(self.norm(self.conv(x)))
        out = self.head(h) * scale + self.shift
        return {"logits": out if bias is None else out + bias, "hidden": h}


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().double()


def image():
    return torch.linspace(-1, 1, 2 * 36, dtype=torch.float64).reshape(2, 1, 6, 6)


def loss(model, x):
    return model(x, scale=2.0)["logits"].square().sum()


def test_children_have_the_names_of_the_module(net):
    model = fl.from_torch(net)
    names = dict(net.named_parameters())
    paths = fl.trainables(model, paths=True)
    assert [path for path, _ in paths] == [
        ".conv.weight", ".conv.bias", ".norm.weight", ".norm.bias", ".head[1].weight", ".head[1].bias",
    ]  # fmt: skip
    assert all(torch.equal(x, p) for (_, x), p in zip(paths, names.values(), strict=True))
    assert model.head[1].weight is model.head[-1].weight
    assert type(model.conv).__name__ == "Conv2d"
    assert model.conv.torch_class is nn.Conv2d


def test_outputs_and_gradients_are_those_of_the_module(net):
    model, x = fl.from_torch(net), image()
    net.eval()
    assert torch.equal(model(x)["logits"], net(x)["logits"])
    before = snapshot(net)
    grads = fl.gradient(loss, model, x)
    assert_unchanged(net, before)
    net.train()
    loss(net, x).backward()
    for (_, g), p in zip(fl.trainables(grads, paths=True), net.parameters(), strict=True):
        torch.testing.assert_close(g, p.grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grads.norm.running_mean.value, net.norm.running_mean, rtol=0, atol=0)
    assert grads.norm.num_batches_tracked.value == 1


def test_a_plain_call_carries_no_graph_and_takes_no_step(net):
    model, x = fl.from_torch(net), image()
    before = snapshot(net)
    assert not model(x)["logits"].requires_grad
    with fl.mode("train"):
        model(x)
    assert_unchanged(net, before)
    assert torch.equal(model.norm.running_mean, torch.zeros(3, dtype=torch.float64))
    _, updates = fl.withupdates(lambda m: m(x), fl.trainmode(model))
    assert fl.apply_updates(model, updates).norm.num_batches_tracked == 1


def test_the_mode_is_that_of_the_scope_and_pins_hold(net):
    net.eval()
    net.norm.train()
    model, x = fl.from_torch(net), image()
    grads = fl.gradient(loss, fl.at(model, ".norm").apply(fl.testmode), x)
    assert grads.norm.running_mean is None
    with fl.mode("test"):
        assert fl.gradient(loss, model, x).norm.running_mean is None
    assert net.norm.training
    assert not net.training


def test_calls_leave_nothing_on_the_skeleton_and_share_nothing():
    class Leaving(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 2)
            self.calls = 0

        def forward(self, x):
            self.calls += 1
            self.last = self.linear(x)
            return self.last * self.calls

    model = fl.from_torch(Leaving())
    x = torch.ones(1, 2)
    first = model(x)
    assert torch.equal(model(x), first)
    assert not hasattr(model, "last")
    held = weakref.ref(first)
    del first
    gc.collect()
    assert held() is None


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_there_is_no_second_copy_of_the_weights():
    linear = nn.Linear(4000, 4000)
    size, before = linear.weight.nbytes, resident()
    model = fl.from_torch(linear)
    skeleton = model._torch.module
    assert all(p.is_meta for p in skeleton.parameters())
    model(torch.ones(1, 4000))
    assert resident() - before < size / 4
    held = weakref.ref(linear.weight)
    del linear
    gc.collect()
    assert held() is None
    grads = fl.gradient(lambda m, x: m(x).sum(), model, torch.ones(1, 4000))
    del grads
    assert resident() - before < size / 4


def test_the_tree_sees_what_is_written_to_the_module_until_its_first_update():
    linear = nn.Linear(2, 2)
    model, x = fl.from_torch(linear), torch.ones(1, 2)
    array = linear.weight.detach().numpy()
    model(x)
    with torch.no_grad():
        linear.weight.zero_()
    assert model.weight.abs().sum() == 0
    assert (array == 0).all()
    grads = fl.gradient(lambda m, x: m(x).sum(), model, x)
    new, _ = fl.update(fl.setup(fl.Descent(1.0), model), model, grads)
    with torch.no_grad():
        linear.weight.fill_(7)
    assert (array == 7).all()
    assert (new.weight == -1).all()


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_donation_copies_what_lies_in_the_memory_of_the_module(compiled, net):
    before, array = snapshot(net), net.norm.running_mean.numpy()
    model, x = fl.from_torch(net), image()
    state = fl.setup(fl.Adam(), model)

    def step(model, state, x):
        return fl.update(state, model, fl.gradient(loss, model, x))

    run = fl.jit(step, donate=(0, 1)) if compiled else step
    new, state = run(model, state, x)
    new, state = run(new, state, x)
    assert_unchanged(net, before)
    assert (array == 0).all()
    assert torch.equal(model.conv.weight, net.conv.weight)
    assert new.norm.num_batches_tracked == 2


@pytest.mark.slow
def test_a_compiled_step_is_traced_once():
    model, x = fl.from_torch(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))), torch.randn(4, 3)
    state = fl.setup(fl.Descent(0.1), model)

    def step(model, state, x):
        return fl.update(state, model, fl.gradient(lambda m, x: m(x).square().sum(), model, x))

    run = fl.jit(step, donate=(0, 1))
    expected = fl.tree.clone((model, state))
    for _ in range(3):
        model, state = run(model, state, x)
        expected = step(*expected, x)
    assert run.cache_info().traces == 1
    assert fl.tree.allclose(model, expected[0], rtol=1e-4, atol=1e-5)
    assert model[1].num_batches_tracked == 3


def test_donation_leaves_the_module_whole(net):
    before = snapshot(net)
    model, x = fl.from_torch(net), image()
    state = fl.setup(fl.Adam(), model)
    model, state = fl.update(state, model, fl.gradient(loss, model, x), donate=True)
    assert_unchanged(net, before)
    model, state = fl.update(state, model, fl.gradient(loss, model, x), donate=True)
    assert_unchanged(net, before)
    assert model.norm.num_batches_tracked == 2


def test_a_tied_parameter_stays_one():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(5, 4)
            self.head = nn.Linear(4, 5, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, x):
            return self.head(self.embedding(x))

    torch.manual_seed(0)
    module = Tied().double()
    model, x = fl.from_torch(module), torch.tensor([1, 2])
    assert model.head.weight is model.embedding.weight
    f = lambda m, x: m(x).square().sum()  # noqa: E731
    grads = fl.gradient(f, model, x)
    assert grads.head.weight is None
    f(module, x).backward()
    torch.testing.assert_close(grads.embedding.weight, module.embedding.weight.grad)
    new, _ = fl.update(fl.setup(fl.Descent(0.1), model), model, grads)
    assert new.head.weight is new.embedding.weight
    assert new(x).shape == (2, 5)


def test_a_module_at_several_places_is_called_as_one():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.BatchNorm1d(2)
            self.b = self.a

        def forward(self, x):
            return self.b(self.a(x) + x)

    torch.manual_seed(0)
    module, x = Twice(), torch.randn(8, 2)
    model = fl.from_torch(module)
    assert model.a is model.b
    _, updates = fl.withupdates(lambda m: m(x), fl.trainmode(model))
    new = fl.apply_updates(model, updates)
    module(x)
    assert new.a.num_batches_tracked == new.b.num_batches_tracked == 2
    torch.testing.assert_close(new.b.running_var, module.a.running_var)
    parted = fl.at(new, ".b.weight").set(torch.zeros(2))
    with torch.no_grad():
        expected = parted.a(x)
    assert torch.equal(parted(x), nn.functional.batch_norm(
        expected + x, new.a.running_mean, new.a.running_var, torch.zeros(2), torch.zeros(2)))  # fmt: skip


@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm", "orthogonal", "own"])
def test_parametrizations_are_computed_from_their_originals(kind):
    class Symmetric(nn.Module):
        def forward(self, w):
            return w.triu() + w.triu(1).mT

    torch.manual_seed(0)
    linear = nn.Linear(3, 3).double()
    if kind == "own":
        parametrize.register_parametrization(linear, "weight", Symmetric())
    else:
        getattr(parametrizations, kind)(linear)
    model, x = fl.from_torch(linear), torch.randn(4, 3, dtype=torch.float64)
    linear.eval()
    torch.testing.assert_close(model(x), linear(x), rtol=0, atol=1e-14)
    torch.testing.assert_close(model.weight, linear.weight.detach(), rtol=0, atol=1e-14)
    linear.train()
    before = snapshot(linear)
    grads = fl.gradient(lambda m, x: m(x).square().sum(), model, x)
    assert_unchanged(linear, before)
    linear(x).square().sum().backward()
    for (path, g), (name, p) in zip(fl.trainables(grads, paths=True), linear.named_parameters(), strict=True):
        assert path.replace("[0]", ".0").lstrip(".") == name
        torch.testing.assert_close(g, p.grad, rtol=1e-10, atol=1e-12)
    if kind == "spectral_norm":
        assigned = grads.parametrizations.weight[0]._u
        torch.testing.assert_close(assigned.value, linear.parametrizations.weight[0]._u)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_the_older_norms_that_work_by_hooks_too(norm):
    torch.manual_seed(0)
    linear = norm(nn.Linear(3, 3).double())
    x = torch.randn(4, 3, dtype=torch.float64)
    linear.train()
    linear(x)  # leaves a weight with a graph on the module
    before = snapshot(linear)
    model = fl.from_torch(linear)
    grads = fl.gradient(lambda m, x: m(x).square().sum(), model, x)
    assert_unchanged(linear, before)
    linear(x).square().sum().backward()
    for (_, g), p in zip(fl.trainables(grads, paths=True), linear.parameters(), strict=True):
        torch.testing.assert_close(g, p.grad, rtol=1e-10, atol=1e-12)


LAYERS = {
    "MultiheadAttention": (
        lambda: nn.MultiheadAttention(4, 2, batch_first=True),
        lambda m, x: m(x, x, x, need_weights=False)[0],
        (2, 3, 4),
    ),
    "LSTM": (lambda: nn.LSTM(4, 3, num_layers=2, bidirectional=True), lambda m, x: m(x)[0], (3, 2, 4)),
    "LSTM with projection": (lambda: nn.LSTM(4, 3, proj_size=2), lambda m, x: m(x)[1][0], (3, 2, 4)),
    "GRU": (lambda: nn.GRU(4, 3, batch_first=True), lambda m, x: m(x)[0], (2, 3, 4)),
    "RNNCell": (lambda: nn.RNNCell(4, 3), lambda m, x: m(x), (2, 4)),
    "TransformerEncoder": (
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True), 2, enable_nested_tensor=False
        ),
        lambda m, x: m(x),
        (2, 3, 4),
    ),
    "Transformer": (
        lambda: nn.Transformer(4, 2, 1, 1, 8, dropout=0.0, batch_first=True),
        lambda m, x: m(x, x),
        (2, 3, 4),
    ),
    "InstanceNorm": (
        lambda: nn.InstanceNorm1d(4, affine=True, track_running_stats=True),
        lambda m, x: m(x),
        (2, 4, 3),
    ),
    "GroupNorm": (lambda: nn.GroupNorm(2, 4), lambda m, x: m(x), (2, 4, 3)),
    "Bilinear": (lambda: nn.Bilinear(4, 4, 2), lambda m, x: m(x, x), (3, 4)),
    "PReLU": (lambda: nn.PReLU(), lambda m, x: m(x), (3, 4)),
    "Identity": (lambda: nn.Sequential(nn.Identity(), nn.Linear(4, 4)), lambda m, x: m(x), (3, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_torch_agree_in_both_modes(name):
    make, call, shape = LAYERS[name]
    torch.manual_seed(0)
    module, x = make().double(), torch.randn(shape, dtype=torch.float64)
    model = fl.from_torch(module)
    module.eval()
    torch.testing.assert_close(call(model, x), call(module, x).detach(), rtol=1e-12, atol=1e-12)
    module.train()
    f = lambda m, x: call(m, x).square().sum()  # noqa: E731
    grads = fl.gradient(f, model, x)
    value = f(module, x)
    value.backward()
    found = dict(fl.trainables(grads, paths=True))
    wanted = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    assert len(found) == len(wanted)
    for g, p in zip(found.values(), wanted.values(), strict=True):
        torch.testing.assert_close(g, p, rtol=1e-10, atol=1e-12)


def test_parameter_lists_and_dicts_are_children():
    class Holding(nn.Module):
        def __init__(self):
            super().__init__()
            self.steps = nn.ParameterList([torch.ones(2), torch.full((2,), 2.0)])
            self.named = nn.ParameterDict({"a": torch.ones(1), "b-c": torch.ones(1)})
            self.layers = nn.ModuleDict({"x-y": nn.Linear(2, 2), "z": nn.ReLU()})
            self.none = None
            self.register_parameter("absent", None)
            self.register_buffer("empty", None)

        def forward(self, x):
            for p in self.steps:
                x = x * p
            return self.layers["z"](self.layers["x-y"](x)) * self.named["a"] + self.named["b-c"]

    model = fl.from_torch(Holding())
    assert [path for path, _ in fl.trainables(model, paths=True)] == [
        ".steps[0]", ".steps[1]", ".named.a", ".named['b-c']", ".layers['x-y'].weight",
        ".layers['x-y'].bias",
    ]  # fmt: skip
    assert len(model.steps) == 2
    assert [float(p[0].detach()) for p in model.steps] == [1.0, 2.0]
    assert list(model.layers) == ["x-y", "z"]
    assert fl.at(model, ".layers['x-y'].weight").get() is model.layers["x-y"].weight
    assert fl.at(model, lambda m: m.steps[-1]).get() is model.steps[1]
    assert fl.gradient(lambda m: m(torch.ones(1, 2)).sum(), model).named["b-c"].item() == 2


def test_surgery_puts_other_layers_in_and_the_forward_calls_them(net):
    x = image()
    model = fl.at(fl.from_torch(net), ".head").set(fl.Chain(fl.flatten, fl.f64(fl.Dense(48, 7))))
    assert model(x)["logits"].shape == (2, 7)
    grads = fl.gradient(loss, model, x)
    assert grads.head.layers[1].weight.shape == (7, 48)
    assert grads.norm.running_mean is not None
    model = fl.at(model, ".norm").set(fl.from_torch(nn.Identity()))
    assert model(x)["logits"].shape == (2, 7)
    model = fl.at(model, ".norm").set(torch.tanh)
    assert model(x)["logits"].shape == (2, 7)
    with pytest.raises(TypeError, match=r"the module 'norm' was replaced by 3, which can't be called"):
        fl.at(model, ".norm").set(3)(x)


def test_a_replaced_layer_may_have_attributes_that_the_forward_reads():
    class Reading(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, x):
            return self.fc(x.to(self.fc.weight.dtype))

    model = fl.at(fl.from_torch(Reading()), ".fc").set(fl.Dense(2, 5))
    assert model(torch.ones(1, 2)).shape == (1, 5)


def test_hooks_are_called_with_what_the_module_would_give_them(net):
    seen = []
    handle = net.conv.register_forward_hook(lambda m, args, out: seen.append((m.weight.shape, out.shape)))
    net.register_forward_pre_hook(lambda m, args, kwargs: (args, {**kwargs, "scale": 3.0}), with_kwargs=True)
    net.norm.register_full_backward_hook(lambda m, given, out: (given[0] * 2,))
    model, x = fl.from_torch(net), image()
    handle.remove()
    assert torch.equal(model(x)["logits"], net.eval()(x)["logits"])
    assert seen == [(torch.Size([3, 1, 3, 3]), torch.Size([2, 3, 4, 4]))]
    grads = fl.gradient(loss, model, x)
    net.train()
    loss(net, x).backward()
    torch.testing.assert_close(grads.conv.weight, net.conv.weight.grad, rtol=1e-12, atol=1e-12)


def test_a_recorder_behind_a_hook_is_the_users_own(net):
    class Recorder:
        def __init__(self):
            self.calls = 0

        def hook(self, module, args, out):
            self.calls += 1

    recorder = Recorder()
    net.conv.register_forward_hook(recorder.hook)
    fl.from_torch(net)(image())
    assert recorder.calls == 1


def test_frozen_parameters_are_not_trained():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    module[0].requires_grad_(False)
    model = fl.from_torch(module)
    assert [p for p, _ in fl.trainables(model, paths=True)] == ["[1].weight", "[1].bias"]
    grads = fl.gradient(lambda m: m(torch.ones(1, 2)).sum(), model)
    assert grads[0].weight is None
    assert torch.equal(module[0].weight, model[0].weight)
    assert torch.equal(model(torch.ones(1, 2)), module(torch.ones(1, 2)))


def test_a_frozen_parameter_that_the_forward_moves_comes_back_as_assigned():
    class Momentum(nn.Module):
        """An encoder and its slow copy, as in MoCo."""

        def __init__(self):
            super().__init__()
            self.fast, self.slow = nn.Linear(2, 2), nn.Linear(2, 2)
            self.slow.requires_grad_(False)

        @torch.no_grad()
        def follow(self):
            for p, q in zip(self.fast.parameters(), self.slow.parameters(), strict=True):
                q.data = q.data * 0.5 + p.data * 0.5

        def forward(self, x):
            self.follow()
            return self.fast(x) * self.slow(x)

    torch.manual_seed(0)
    module = Momentum()
    before = snapshot(module)
    model = fl.from_torch(module)
    grads = fl.gradient(lambda m: m(torch.ones(1, 2)).sum(), model)
    assert_unchanged(module, before)
    wanted = (before["slow.weight"] + before["fast.weight"]) / 2
    torch.testing.assert_close(grads.slow.weight.value, wanted)


class CountsAlone(nn.Module):
    """Statistics by the functional kernel, which does not declare what it writes."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("var", torch.ones(3))
        self.register_buffer("table", torch.eye(3))
        self.register_buffer("seen", torch.tensor(0))

    def forward(self, x):
        self.seen = self.seen + len(x)
        x = nn.functional.batch_norm(x, self.mean, self.var, training=self.training)
        return x @ self.table


def test_buffers_that_are_written_are_found_whoever_writes_them():
    module = CountsAlone()
    model, x = fl.from_torch(module), torch.randn(5, 3)
    _, updates = fl.withupdates(lambda m: m(x), model)
    new = fl.apply_updates(model, updates)
    module(x)
    torch.testing.assert_close(new.mean, module.mean)
    assert new.seen == 5
    assert new.table is model.table
    assert model.seen == 0


def test_a_buffer_in_memory_of_numpy_is_copied_and_compared():
    module = CountsAlone()
    module.mean = torch.from_numpy(torch.zeros(3).numpy())
    model, x = fl.from_torch(module), torch.randn(5, 3)
    _, updates = fl.withupdates(lambda m: m(x), model)
    assert fl.apply_updates(model, updates).mean.abs().sum() > 0
    assert module.mean.abs().sum() == 0


def test_a_buffer_whose_shape_changes_is_not_kept_and_says_so():
    class Growing(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("cache", torch.zeros(0))

        def forward(self, x):
            self.cache = torch.arange(len(x)) * 1.0
            return x + self.cache

    model = fl.from_torch(Growing())
    assert model(torch.ones(3)).tolist() == [1, 2, 3]
    with pytest.warns(UserWarning, match="Growing changed the shape of its buffer 'cache'"):
        fl.withupdates(lambda m: m(torch.ones(3)), model)


def test_lazy_modules_take_an_example_and_stay_lazy_themselves():
    module = nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d())
    with pytest.raises(ValueError, match=r"0\.weight of the module has no shape yet: write from_torch"):
        fl.from_torch(module)
    model = fl.from_torch(module, torch.ones(2, 3))
    assert model[0].weight.shape == (4, 3)
    assert model[1].num_batches_tracked == 0
    assert isinstance(module[0], nn.LazyLinear)
    assert model(torch.ones(2, 3)).shape == (2, 4)


def test_other_methods_and_attributes_of_the_module_work_on_the_tree():
    class Auto(nn.Module):
        size = 3

        def __init__(self):
            super().__init__()
            self.body, self.config = nn.Linear(3, 3), {"depth": 1}

        @property
        def dtype(self):
            return next(self.parameters()).dtype

        def encode(self, x, *, times=1):
            return self.body(x) * times

        @property
        def inner(self):
            return self.body

        def reset_(self):
            self.body.weight.data.zero_()

    model, x = fl.from_torch(Auto()), torch.ones(1, 3)
    assert model.size == 3
    assert model.config == {"depth": 1}
    assert fl.f64(model).dtype == torch.float64
    assert model.inner is model.body
    assert torch.equal(model.encode(x, times=2), model.body(x) * 2)
    grads = fl.gradient(lambda m: m.encode(x).sum(), model)
    assert grads.body.bias.tolist() == [1, 1, 1]
    for name in ("reset_", "apply", "double", "register_forward_hook", "named_modules", "compile"):
        with pytest.raises(AttributeError, match=f"is a node of a tree and has no '{name}'"):
            getattr(model, name)
    with pytest.raises(AttributeError, match=r"no 'eval': everything but gradient tests"):
        model.eval()
    with pytest.raises(AttributeError, match="nothing"):
        model.nothing  # noqa: B018
    assert "encode" in dir(model)
    assert "eval" not in dir(model)


def test_a_call_that_writes_a_parameter_is_refused_and_changes_nothing():
    class Clipping(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, x):
            self.linear.weight.data.clamp_(-0.01, 0.01)
            return self.linear(x)

        def replace(self):
            self.linear.weight = nn.Parameter(torch.zeros(2, 2))

    model = fl.fmap(torch.clone, fl.from_torch(Clipping()))
    before = model.linear.weight.clone()
    with pytest.raises(RuntimeError, match="changes the parameter 'weight' of a Linear, and a tree is never"):
        model(torch.ones(1, 2))
    with pytest.raises(RuntimeError, match="changes the parameter 'weight' of a Linear"):
        model.replace()
    with pytest.raises(RuntimeError, match="changes the parameter 'weight' of a Linear"):
        model.linear.reset_parameters()
    assert torch.equal(model.linear.weight, before)


def test_hooks_on_parameters_are_warned_of():
    linear = nn.Linear(2, 2)
    linear.bias.register_hook(lambda g: 2 * g)
    with pytest.warns(UserWarning, match="hooks on parameters, here of bias, are not run"):
        fl.from_torch(linear)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.InstanceNorm1d])
def test_one_example_alone_has_no_statistics_of_a_batch(norm):
    model = fl.from_torch(nn.Sequential(norm(3, track_running_stats=True), nn.Flatten(), nn.Linear(3, 1)))
    x = torch.ones(4, 3, 1)
    f = lambda m, x: m(x).sum()  # noqa: E731
    with pytest.raises(ValueError, match=r"is in train mode; it mixes the examples.*GroupNorm"):
        fl.per_example_gradient(f, model, x)
    assert fl.per_example_gradient(f, fl.testmode(model), x)[2].bias.shape == (4, 1)


def test_a_module_put_in_by_surgery_becomes_a_tree(net):
    model = fl.at(fl.from_torch(net), ".head").set(nn.Sequential(nn.Flatten(), nn.Linear(48, 4)).double())
    assert isinstance(model.head, fl.TorchModule)
    assert fl.gradient(loss, model, image()).head[1].weight.shape == (4, 48)


def test_threads_and_calls_inside_calls_do_not_meet():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    model = fl.from_torch(module)
    other = fl.fmap(lambda x: x * 2, model)
    x = torch.randn(8, 4)
    wanted = [model(x), other(x)]
    wrong = []

    def work(m, y):
        for _ in range(100):
            if not torch.equal(m(x), y):
                wrong.append(m)

    threads = [threading.Thread(target=work, args=(m, y)) for m, y in zip([model, other] * 3, wanted * 3)]  # noqa: B905
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
    inside = fl.at(model, "[1]").set(lambda h: other(h))
    torch.testing.assert_close(inside(x), model[2](other(model[0](x))))


def test_the_path_of_the_module_that_failed_is_named(net):
    model = fl.from_torch(net)
    with pytest.raises(fl.LayerError, match=r"^\.conv: Conv2d\(.*got a tensor of shape \(2, 5, 6, 6\)"):
        model(torch.ones(2, 5, 6, 6, dtype=torch.float64))
    with pytest.raises(fl.LayerError, match=r"^\.layers\[1\]\.conv: Conv2d"):
        fl.Chain(fl.relu, model)(torch.ones(2, 5, 6, 6, dtype=torch.float64))
    with pytest.raises(TypeError, match="unexpected keyword argument 'wrong'"):
        model(image(), wrong=1)
    assert model(image())["logits"].shape == (2, 2)  # the skeleton is as before


def test_copies_pickles_and_files_keep_the_model(net, tmp_path):
    model, x = fl.from_torch(net), image()
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(fl.from_torch(nn.Linear(2, 2)).weight))):
        assert again is not model
    assert torch.equal(copy.deepcopy(model)(x)["logits"], model(x)["logits"])
    linear = fl.from_torch(nn.Linear(2, 2))
    assert torch.equal(pickle.loads(pickle.dumps(linear))(torch.ones(1, 2)), linear(torch.ones(1, 2)))
    fl.save(tmp_path / "net.safetensors", model)
    fresh = fl.from_torch(Net().double())
    loaded = fl.load(tmp_path / "net.safetensors", like=fresh)
    assert torch.equal(loaded(x)["logits"], model(x)["logits"])


def test_transforms_compose_over_a_module():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    model, x = fl.from_torch(module), torch.randn(5, 3, dtype=torch.float64)
    f = lambda m, x: m(x).square().mean()  # noqa: E731
    each = fl.per_example_gradient(f, model, x)
    mean = fl.fmap(lambda g: g.mean(0), each)
    assert fl.tree.allclose(mean, fl.gradient(f, model, x))
    models = [model, fl.fmap(lambda p: p * 2, model), fl.fmap(lambda p: p * 3, model)]
    outs = fl.vmap(lambda m: m(x))(fl.stack(models))
    torch.testing.assert_close(outs, torch.stack([m(x) for m in models]))
    penalty = lambda m, x: fl.gradient(lambda x: m(x).sum(), x).square().sum()  # noqa: E731
    twice = fl.gradient(penalty, model, x)
    leaf = x.clone().requires_grad_()
    (inner,) = torch.autograd.grad(module(leaf).sum(), leaf, create_graph=True)
    inner.square().sum().backward()
    torch.testing.assert_close(twice[0].weight, module[0].weight.grad)
    assert fl.hvp(lambda m: f(m, x), model, v=model)[0].weight.shape == (4, 3)
    assert torch.autograd.gradcheck(lambda x: model(x), x.clone().requires_grad_())


def test_an_ensemble_with_statistics_is_each_member_alone():
    torch.manual_seed(0)
    make = lambda: fl.from_torch(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double())  # noqa: E731
    members, x = [make(), make()], torch.randn(6, 3, dtype=torch.float64)
    f = lambda m: fl.gradient(lambda m: m(x).square().mean(), m)  # noqa: E731
    together = fl.unstack(fl.vmap(f)(fl.stack(members)))
    for a, b in zip(together, map(f, members), strict=True):
        torch.testing.assert_close(a[0].weight, b[0].weight)
        torch.testing.assert_close(a[1].running_mean.value, b[1].running_mean.value)


def test_dropout_is_drawn_from_the_key_in_scope_else_as_torch_draws_it():
    module = nn.Sequential(nn.Linear(3, 50), nn.Dropout(0.5))
    model, x = fl.from_torch(module), torch.ones(4, 3)
    f = lambda m, x: m(x).sum()  # noqa: E731
    torch.manual_seed(3)
    value, _ = fl.withgradient(f, model, x)
    torch.manual_seed(3)
    assert value == f(module.train(), x)
    a = fl.withgradient(f, model, x, key=fl.Key(0))[0]
    b = fl.withgradient(f, model, x, key=fl.Key(0))[0]
    assert a == b
    assert a != fl.withgradient(f, model, x, key=fl.Key(1))[0]


def test_wrt_and_freeze_and_rules_by_path(net):
    model, x = fl.from_torch(net), image()
    grads = fl.gradient(loss, model, x, wrt=".head")
    assert grads.conv.weight is None
    assert grads.head[1].weight is not None
    state = fl.setup(lambda path: fl.Descent(0.0 if path.startswith(".conv") else 0.1), model)
    state = fl.freeze(state, ".norm")
    new, _ = fl.update(state, model, fl.gradient(loss, model, x))
    assert torch.equal(new.conv.weight, model.conv.weight)
    assert torch.equal(new.norm.weight, model.norm.weight)
    assert not torch.equal(new.head[1].weight, model.head[1].weight)
    assert new.norm.num_batches_tracked == 1


def test_every_output_is_heard_under_the_path_of_its_module(net):
    model, x = fl.from_torch(net), image()
    heard = fl.activations(model, x)
    assert heard[".conv"].shape == (2, 3, 4, 4)
    assert torch.equal(heard[".head[1]"] + 0.5, heard[""]["logits"])
    assert "Conv2d(1, 3, kernel_size=(3, 3), stride=(1, 1))" in str(fl.summary(model, x))


def test_normalisation_stays_in_float32_as_ours_does(net):
    model = fl.bf16(fl.from_torch(net))
    assert model.conv.weight.dtype == torch.bfloat16
    assert model.norm.weight.dtype == model.norm.running_mean.dtype == torch.float32
    model = fl.bf16(fl.from_torch(Net()))
    assert model(image().bfloat16())["logits"].dtype == torch.bfloat16


class Point(NamedTuple):
    loss: torch.Tensor
    logits: torch.Tensor


def test_named_tuples_come_out_as_they_are():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(2, 2)

        def forward(self, x, y):
            out = self.a(x)
            return Point((out - y).square().mean(), out)

    model = fl.from_torch(Both())
    value, grads = fl.withgradient(lambda m, x, y: m(x, y), model, torch.ones(1, 2), torch.ones(1, 2))
    assert isinstance(value, Point)
    assert grads.a.weight.shape == (2, 2)


def test_autocast_and_checkpoint_and_purity(net):
    model, x = fl.from_torch(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))), torch.randn(8, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert model[0](x).dtype == torch.bfloat16
    f = lambda m, x: fl.checkpoint(m)(x).square().sum()  # noqa: E731
    plain = fl.gradient(lambda m, x: m(x).square().sum(), model, x)
    again = fl.gradient(f, model, x)
    assert torch.equal(again[0].weight, plain[0].weight)
    assert again[1].num_batches_tracked.value == 1
    report = fl.check_pure(lambda m, x: fl.gradient(lambda m, x: m(x).square().sum(), m, x), model, x)
    assert report


def test_parts_that_the_module_computes_again_find_their_tensors():
    class Saving(nn.Module):
        def __init__(self, reentrant):
            super().__init__()
            self.reentrant = reentrant
            self.inner = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Dropout(0.5))
            self.head = nn.Linear(3, 1)

        def forward(self, x):
            return self.head(checkpoint(self.inner, x, use_reentrant=self.reentrant))

    torch.manual_seed(0)
    module, x = Saving(False).double(), torch.randn(6, 3, dtype=torch.float64).requires_grad_()
    model = fl.from_torch(module)
    f = lambda m: m(x).square().sum()  # noqa: E731
    for key in (None, fl.Key(0)):
        torch.manual_seed(1)
        grads = fl.gradient(f, model, key=key)
        assert grads.inner[1].num_batches_tracked.value == 1
        torch.manual_seed(1)
        plain = fl.gradient(lambda m: m.head(m.inner(x)).square().sum(), model, key=key)
        torch.testing.assert_close(grads.inner[0].weight, plain.inner[0].weight)
    assert len(model._torch._free) <= 1
    with pytest.raises(ValueError, match=r"use_reentrant=True, through which no gradient can be returned"):
        fl.gradient(f, fl.from_torch(Saving(True).double()))


def test_a_forward_that_gives_its_results_one_by_one_keeps_its_tensors():
    class Stepwise(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, xs):
            for x in xs:
                yield self.linear(x)

    model = fl.from_torch(Stepwise())
    later = model([torch.ones(1, 2), torch.zeros(1, 2)])
    other = fl.tree.scale(model, 2.0)([torch.ones(1, 2)])
    assert torch.equal(next(later), model.linear(torch.ones(1, 2)))
    assert torch.equal(next(other), 2 * model.linear(torch.ones(1, 2)))
    assert torch.equal(next(later), model.linear(torch.zeros(1, 2)))


def test_what_is_no_module_is_told_what_to_write():
    with pytest.raises(TypeError, match=r"takes a torch\.nn\.Module, found a Dense"):
        fl.from_torch(fl.Dense(2, 2))
    with pytest.raises(TypeError, match=r"got the class Linear: write from_torch\(Linear\(…\)\)"):
        fl.from_torch(nn.Linear)
    with pytest.raises(TypeError, match="the model is a tree already"):
        fl.from_torch(fl.from_torch(nn.Linear(2, 2)))
    with pytest.raises(TypeError, match=r"\['m'\] is a Linear.*write fluxlike.from_torch"):
        fl.gradient(lambda t: t["m"](torch.ones(1, 2)).sum(), {"m": nn.Linear(2, 2)})


def test_a_module_that_cannot_be_copied_says_so():
    class Locked(nn.Module):
        def __init__(self):
            super().__init__()
            self.lock = threading.Lock()

    with pytest.raises(ValueError, match=r"copy\.deepcopy of lock fails: TypeError: cannot pickle"):
        fl.from_torch(Locked())


def test_references_between_modules_reach_the_copy_that_runs():
    class Referring(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(2, 2)
            self.order = [self.a]
            self.act = self.double
            self.a.__dict__["parent"] = self

        def double(self, x):
            return x * self.scale

        def forward(self, x):
            self.scale = 2
            return self.a.parent.act(self.order[0](x))

    module = Referring()
    model, x = fl.from_torch(module), torch.ones(1, 2)
    assert torch.equal(model(x), module(x))
    assert fl.gradient(lambda m: m(x).sum(), model).a.bias.tolist() == [2, 2]


def convolutional():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(40, 3), nn.LayerNorm(3)
    )


@pytest.mark.parametrize("framework", ["flux", "flax", "keras"])
def test_layouts_are_those_of_our_own_layers(framework):
    model, x = fl.from_torch(convolutional()), torch.ones(1, 1, 6, 7)
    ours = fl.Chain(
        fl.Conv((3, 3), 1, 2), fl.BatchNorm(2), fl.relu, fl.flatten, fl.Dense(40, 3), fl.LayerNorm(3)
    )
    for i in (0, 1, 4, 5):
        for name in ("weight", "bias"):
            place = lambda m, i=i, name=name: getattr(m.layers[i], name)  # noqa: E731
            ours = fl.at(ours, place).set(getattr(model[i], name))
    there = fl.convert_layout(model, "torch", framework, inputs=x)
    expected = fl.convert_layout(ours, "torch", framework, inputs=x)
    for i in (0, 1, 4, 5):
        assert torch.equal(there[i].weight, expected.layers[i].weight)
    assert fl.tree.allclose(fl.convert_layout(there, framework, inputs=x), model)
    state = fl.foreign_state(model, framework, inputs=x)
    assert fl.tree.allclose(fl.load_foreign_state(model, state, framework, inputs=x), model)


def test_a_flatten_inside_a_module_of_ones_own_is_seen():
    class Flat(nn.Module):
        def forward(self, x):
            return x.flatten(1)

    model = fl.from_torch(nn.Sequential(nn.Conv2d(1, 2, 3), Flat(), nn.Linear(40, 3)))
    with pytest.raises(ValueError, match="flax flattens images with their channels last"):
        fl.convert_layout(model, "torch", "flax")
    x = torch.ones(1, 1, 6, 7)
    there = fl.convert_layout(model, "torch", "flax", inputs=x)
    assert not torch.equal(there[2].weight.mT.sort(1).values, there[2].weight.mT)
    assert torch.equal(fl.convert_layout(there, "flax", inputs=x)[2].weight, model[2].weight)


def test_layers_are_made_anew_by_the_type_of_the_module_or_of_ours():
    model = fl.reinit(fl.from_torch(convolutional()), {nn.Linear: torch.ones, fl.Conv: torch.zeros})
    assert (model[4].weight == 1).all()
    assert (model[0].weight == 0).all()
    assert (model[1].weight == 1).all()


def test_members_of_one_architecture_can_be_stacked_and_others_are_refused():
    make = lambda p: fl.from_torch(nn.Sequential(nn.Linear(2, 2), nn.Dropout(p)))  # noqa: E731
    assert fl.stack([make(0.1), make(0.1)])[0].weight.shape == (2, 2, 2)
    with pytest.raises(ValueError, match=r"the Dropout at \[1\]"):
        fl.stack([make(0.1), make(0.2)])


def test_to_torch_gives_a_module_of_the_same_class_back(net):
    net.norm.requires_grad_(False)
    model, x = fl.from_torch(net), image()
    state = fl.setup(fl.Adam(), model)
    model, state = fl.update(state, model, fl.gradient(loss, model, x))
    module = fl.to_torch(model)
    assert type(module) is Net
    assert module.training
    assert list(module.state_dict()) == list(net.state_dict())
    assert not module.norm.weight.requires_grad
    assert torch.equal(module.eval()(x)["logits"], model(x)["logits"])
    before = model.conv.weight.clone()
    optimiser = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.1)
    loss(module.train(), x).backward()
    optimiser.step()
    assert torch.equal(model.conv.weight, before)
    assert module.norm.num_batches_tracked == 2
    again = fl.from_torch(module)
    assert torch.equal(again(x)["logits"], module.eval()(x)["logits"])


def test_to_torch_takes_layers_that_surgery_put_in_and_keeps_ties(net):
    model = fl.at(fl.from_torch(net), ".head").set(fl.f64(fl.Chain(fl.flatten, fl.Dense(48, 4))))
    module, x = fl.to_torch(model), image()
    assert module.head.layers[1].weight.shape == (4, 48)
    loss(module, x).backward()
    assert module.head.layers[1].weight.grad is not None
    inside = fl.to_torch(fl.Chain(net, lambda out: out["logits"]))
    assert type(inside.layers[0]) is Net
    assert torch.equal(inside.eval()(x), net.eval()(x)["logits"])
    tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    tied[1].weight = tied[0].weight
    module = fl.to_torch(fl.from_torch(tied))
    assert module[1].weight is module[0].weight


@pytest.mark.parametrize("need_weights", [False, True])
def test_attention_has_derivatives_of_every_order(need_weights):
    torch.manual_seed(0)
    module = nn.MultiheadAttention(4, 2, batch_first=True).double()
    model, x = fl.from_torch(module), torch.randn(2, 3, 4, dtype=torch.float64)

    def f(m, x):
        return m(x, x, x, need_weights=need_weights)[0].square().sum()

    step = 1e-6
    moved = fl.tree.add(model, fl.tree.scale(model, step)), fl.tree.sub(model, fl.tree.scale(model, step))
    with fl.mode("test"):
        expected = fl.tree.scale(fl.tree.sub(*(fl.gradient(f, m, x) for m in moved)), 0.5 / step)
        assert fl.tree.allclose(fl.hvp(lambda m: f(m, x), model, v=model), expected, rtol=1e-5, atol=1e-6)
    penalty = lambda m: fl.tree.norm(fl.gradient(f, m, x))  # noqa: E731
    assert fl.gradient(penalty, model).in_proj_weight.isfinite().all()
