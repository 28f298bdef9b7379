"""What calls of wrapped modules must not do: change their arguments, remember, or reach the module itself."""

from __future__ import annotations

import collections
import functools
import threading

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import fluxlike as fl


class Scaling(nn.Module):
    """Writes to its weight in the forward, in one way or another."""

    def __init__(self, write):
        super().__init__()
        self.w = nn.Parameter(torch.ones(3))
        self.write = write

    def forward(self, x):
        self.write(self)
        return (self.w * x).sum()


def by_data(m):
    m.w.data.mul_(0.5)


def by_place(m):
    m.w = nn.Parameter(torch.zeros(3))


def by_new_data(m):
    m.w.data = torch.zeros(3)


@pytest.mark.parametrize("write", [by_data, by_place, by_new_data], ids=lambda f: f.__name__)
@pytest.mark.parametrize("how", ["plain", "gradient"])
def test_a_parameter_that_a_forward_writes_is_refused_and_is_as_before(write, how):
    model, x = fl.fmap(torch.clone, fl.from_torch(Scaling(write))), torch.ones(3)
    call = {"plain": lambda: model(x), "gradient": lambda: fl.gradient(lambda m: m(x), model)}[how]
    with pytest.raises(RuntimeError, match="the call changes the parameter 'w' of a Scaling"):
        call()
    assert torch.equal(model.w, torch.ones(3))


def test_a_declared_write_to_a_frozen_parameter_under_vmap_is_refused():
    module = Scaling(lambda m: m.w.mul_(0.5))
    module.w.requires_grad_(False)
    member = fl.from_torch(module)
    assert fl.withupdates(lambda m: m(torch.ones(3)), fl.trainmode(member))[1].w.value.tolist() == [0.5] * 3
    with pytest.raises(RuntimeError, match="the call changes the parameter 'w' of a Scaling"):
        fl.vmap(lambda m: m(torch.ones(3)))(fl.stack([member, member]))


class Remembering(nn.Module):
    """Keeps what it sees, in containers of many kinds."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.seen = collections.defaultdict(list)
        self.nested = {"a": [], "b": {"c": set()}}
        self.last = collections.deque(maxlen=5)
        self.total = torch.zeros(())

    def forward(self, x):
        y = self.linear(x)
        self.seen["y"].append(y)
        self.nested["a"].append(1)
        self.nested["b"]["c"].add(len(self.nested["b"]["c"]))
        self.last.append(y)
        self.total += 1
        self.block = self.linear
        sizes = len(self.seen["y"]), len(self.nested["a"]), len(self.nested["b"]["c"]), len(self.last)
        return y.sum(), (*sizes, int(self.total))


def test_calls_remember_nothing_and_the_copy_is_used_again():
    module = Remembering()
    model, x = fl.from_torch(module), torch.ones(1, 2)
    for _ in range(3):
        assert model(x)[1] == (1, 1, 1, 1, 1)
        (_, sizes), _ = fl.withgradient(lambda m: m(x), model)
        assert sizes == (1, 1, 1, 1, 1)
    (slot,) = model._torch._free
    assert not slot.module.seen
    assert not hasattr(slot.module, "block")
    assert module.total == 0


def test_functions_that_close_over_the_module_are_refused():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    first = net.forward
    net.forward = lambda x: first(x) * 2
    with pytest.raises(ValueError, match=r"the module has the function .* closes over the module itself"):
        fl.from_torch(net)
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[0].register_forward_hook(lambda m, args, out: out @ net[1].weight)
    with pytest.raises(ValueError, match=r"^0 has the function .* closes over the module itself"):
        fl.from_torch(net)
    net = nn.Linear(2, 2)
    net.register_forward_hook(lambda m, args, out, w=net.weight: out @ w)
    with pytest.raises(ValueError, match="closes over weight"):
        fl.from_torch(net)


def test_a_partial_over_the_module_reaches_the_copy_that_runs():
    def doubled(module, x):
        return type(module).forward(module, x) * 2

    net = nn.Linear(2, 2)
    net.forward = functools.partial(doubled, net)
    model, x = fl.from_torch(net), torch.ones(1, 2)
    assert torch.equal(fl.tree.scale(model, 0.0)(x), torch.zeros(1, 2))
    assert fl.gradient(lambda m: m(x).sum(), model).bias.tolist() == [2, 2]


class Table(nn.Module):
    """A frozen layer, a table that nobody writes, and statistics by the functional kernel."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.live = nn.Linear(3, 3)
        self.register_buffer("table", torch.eye(3))
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("var", torch.ones(3))
        self.register_buffer("seen", torch.tensor(0))
        self.mask = torch.ones(3)

    def forward(self, x):
        self.seen += len(x)
        x = nn.functional.batch_norm(self.frozen(x) * self.mask, self.mean, self.var, training=self.training)
        return self.live(x) @ self.table


def test_traces_assign_what_eager_calls_assign():
    torch.manual_seed(0)
    model, x = fl.from_torch(Table()), torch.randn(5, 3)
    f = lambda m, x: m(x).square().mean()  # noqa: E731
    eager = fl.gradient(f, model, x)
    lowered = fl.jit(lambda m, x: fl.gradient(f, m, x)).lower(model, x)
    mapped = fl.unstack(fl.vmap(lambda m: fl.gradient(f, m, x))(fl.stack([model, model])))[0]
    assert eager.seen.value == 5
    assert eager.table is None
    assert eager.frozen.weight is None
    torch.testing.assert_close(mapped.mean.value, eager.mean.value)
    assert mapped.table is None
    assert mapped.frozen.weight is None
    assert lowered is not None


@pytest.mark.slow
def test_a_compiled_step_assigns_what_an_eager_one_assigns():
    torch.manual_seed(0)
    model, x = fl.from_torch(Table()), torch.randn(5, 3)  # not called before: the trace makes the copy
    f = lambda m, x: m(x).square().mean()  # noqa: E731
    compiled, eager = fl.jit(lambda m, x: fl.gradient(f, m, x))(model, x), fl.gradient(f, model, x)
    for name in ("mean", "var", "seen"):
        torch.testing.assert_close(getattr(compiled, name).value, getattr(eager, name).value)
    assert compiled.table is None
    assert compiled.frozen.weight is None


def test_cached_parametrizations_are_those_of_the_tree_that_is_called():
    torch.manual_seed(0)
    a, x = fl.from_torch(parametrizations.orthogonal(nn.Linear(3, 3))), torch.ones(1, 3)
    b = fl.fmap(lambda p: p + 1, a)
    expected = a(x), b(x)
    with parametrize.cached():
        assert torch.equal(a(x), expected[0])
        assert torch.equal(b(x), expected[1])
        assert torch.equal(a(x), expected[0])


def test_modules_that_were_parametrized_one_by_one_are_of_one_class():
    make = lambda: fl.from_torch(parametrizations.weight_norm(nn.Linear(3, 3)))  # noqa: E731
    a, b = make(), make()
    assert type(a) is type(b)
    assert fl.stack([a, b]).bias.shape == (2, 3)


def test_sparse_buffers_ride_along():
    class Graph(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 1)
            self.register_buffer("edges", torch.eye(3).to_sparse())

        def forward(self, x):
            return torch.sparse.mm(self.edges, self.linear(x))

    model = fl.from_torch(Graph())
    grads = fl.gradient(lambda m: m(torch.ones(3, 3)).sum(), model)
    assert grads.edges is None
    assert grads.linear.bias.item() == 3


def test_nodes_of_a_shared_module_that_parted_are_two_modules():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(2, 2)
            self.b = self.a

        def forward(self, x):
            return self.a(x) - self.b(x)

    model, x = fl.from_torch(Twice()), torch.ones(1, 2)
    together = fl.to_torch(model)
    assert together.a is together.b
    parted = fl.at(model, ".b.weight").set(torch.zeros(2, 2))
    module = fl.to_torch(parted)
    assert module.a is not module.b
    torch.testing.assert_close(module(x).detach(), parted(x))


def test_methods_that_change_the_module_are_refused():
    class Configured(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.flag, self.lambda_ = nn.Linear(2, 2), False, 0.1

        def enable(self):
            self.flag = True

        def widen(self):
            self.fc = nn.Linear(2, 5)

    model = fl.from_torch(Configured())
    assert model.lambda_ == 0.1
    with pytest.raises(RuntimeError, match="changes the attribute 'flag' of a Configured"):
        model.enable()
    with pytest.raises(RuntimeError, match="changes the module 'fc' of a Configured"):
        model.widen()


def test_attributes_of_a_node_can_not_be_set():
    model = fl.from_torch(nn.Dropout(0.5))
    with pytest.raises(AttributeError, match=r"never changed in place; write model = fluxlike\.at\(model"):
        model.p = 0.0
    with pytest.raises(AttributeError, match="never changed in place"):
        del model.p


@pytest.mark.parametrize("name", ["_torch", "_pinned_mode", "__w__", "torch_class", "extra_repr"])
def test_names_that_a_node_uses_itself_are_refused(name):
    module = nn.Module()
    module.register_parameter(name, nn.Parameter(torch.ones(1))) if name != "extra_repr" else (
        module._parameters.update({name: nn.Parameter(torch.ones(1))})
    )
    with pytest.raises(ValueError, match=f"{name} of the module has a name that a TorchModule uses"):
        fl.from_torch(module)


def test_a_module_that_contains_itself_is_refused_by_its_path():
    a = nn.Sequential(nn.Linear(2, 2))
    a[0].add_module("up", a)
    with pytest.raises(ValueError, match=r"\.0\.up of the module is a module around it"):
        fl.from_torch(a)


def test_a_layer_of_ours_on_a_module_is_refused():
    module = nn.Module()
    module.head = fl.Dense(2, 2)
    with pytest.raises(ValueError, match="head of the module is a Dense of fluxlike"):
        fl.from_torch(module)


def test_parameters_that_share_memory_without_being_one_are_warned_of():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[0].weight.data = module[1].weight.data
    with pytest.warns(UserWarning, match=r"parameters 0\.weight and 1\.weight share memory"):
        fl.from_torch(module)


def test_tensors_that_modules_share_are_tied_however_they_come_in():
    layer = nn.Linear(3, 3)
    model = fl.Chain(layer, nn.ReLU(), layer)
    assert model[0].weight is model[2].weight
    assert len(fl.trainables(model)) == 2
    embed, decoder = nn.Embedding(3, 3), nn.Linear(3, 3, bias=False)
    decoder.weight = embed.weight
    assert len(fl.trainables(fl.Chain(embed, decoder))) == 1


def test_a_train_method_of_the_module_sets_the_modes_and_pins_hold():
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.BatchNorm1d(2), nn.BatchNorm1d(2)

        def train(self, mode=True):
            super().train(mode)
            self.a.eval()
            return self

        def forward(self, x):
            return self.b(self.a(x))

    model, x = fl.from_torch(Frozen()), torch.randn(4, 2)
    grads = fl.gradient(lambda m: m(x).sum(), model)
    assert grads.a.running_mean is None
    assert grads.b.running_mean is not None
    pinned = fl.at(model, ".a").apply(fl.trainmode)
    assert fl.gradient(lambda m: m(x).sum(), pinned).a.running_mean is not None


def test_pins_are_modes_of_the_module_that_to_torch_makes():
    model = fl.from_torch(nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2)))
    module = fl.to_torch(fl.at(model, "[0]").apply(fl.testmode))
    assert not module[0].training
    assert module[1].training


def test_first_calls_from_many_threads_agree():
    model, x = (
        fl.fmap(torch.clone, fl.from_torch(nn.Sequential(*[nn.Linear(4, 4) for _ in range(20)]))),
        torch.ones(1, 4),
    )
    expected, found = fl.tree.clone(model)(x), []
    threads = [threading.Thread(target=lambda: found.append(model(x))) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(found) == 8
    assert all(torch.equal(y, expected) for y in found)


def test_settings_say_what_differs_between_members():
    make = lambda p: fl.from_torch(nn.Dropout(p))  # noqa: E731
    with pytest.raises(ValueError, match=r"Dropout\(p=0\.1, inplace=False\) in tree 0 and Dropout\(p=0\.2"):
        fl.stack([make(0.1), make(0.2)])


def test_files_compare_the_settings_of_modules_and_checkpoints_may_lack_what_state_dicts_lack(tmp_path):
    class Positions(nn.Module):
        def __init__(self, stride):
            super().__init__()
            self.conv, self.norm = nn.Conv1d(1, 1, 1, stride=stride), nn.BatchNorm1d(1)
            self.register_buffer("pos", torch.arange(4.0), persistent=False)

    file = tmp_path / "model.safetensors"
    fl.save(file, fl.from_torch(Positions(1)))
    with pytest.raises(ValueError, match=r"\.conv\.stride is \(1,\) in the file, the model has \(2,\)"):
        fl.load(file, like=fl.from_torch(Positions(2)))
    module = Positions(1)
    state = module.state_dict()
    del state["norm.num_batches_tracked"]
    loaded = fl.load_checkpoint(state, fl.from_torch(Positions(1)))
    assert torch.equal(loaded.pos, torch.arange(4.0))
    assert torch.equal(loaded.conv.weight, module.conv.weight)


@pytest.mark.parametrize(
    "make",
    [nn.Linear, nn.LSTM, lambda *n: parametrizations.weight_norm(nn.Linear(*n))],
    ids=["Linear", "LSTM", "weight_norm"],
)
def test_arrays_that_look_at_the_module_look_at_it_still(make):
    module = make(30, 40)
    arrays = [(p, p.detach().numpy()) for p in module.parameters()]
    model = fl.from_torch(module)
    fl.gradient(lambda m: fl.fleaves(m(torch.ones(2, 30)))[0].sum(), model)
    model(torch.ones(2, 30))
    assert all(array.ctypes.data == p.data_ptr() for p, array in arrays)
