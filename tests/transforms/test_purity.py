"""`check_pure`: it finds what a function changes, draws or sets, and leaves no trace of its own."""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fluxlike as fl


@fl.functor(children=("weight", "mean"), buffers=("mean",))
class Layer:
    """Has children, and attributes that ride along."""

    def __init__(self) -> None:
        self.weight, self.mean = torch.ones(2), torch.zeros(2)
        self.calls, self.history = 0, ["made"]

    def __call__(self, x: Tensor) -> Tensor:
        return self.weight * x


def model() -> Any:
    return {"layers": [Layer(), fl.Dense(2, 2)], "name": "m"}


X = torch.linspace(-1, 1, 8).reshape(4, 2)


# Pure functions


@pytest.mark.parametrize(
    "f",
    [
        lambda m, x: m["layers"][1](m["layers"][0](x)),
        lambda m, x: fl.gradient(lambda m: m["layers"][1](x).sum(), m),
        lambda m, x: fl.withupdates(lambda m: fl.BatchNorm(2)(x), m),
        lambda m, x: x.clone().add_(1).mul_(2),
        lambda m, x: torch.func.vmap(lambda row: row * m["layers"][0].weight)(x),
        lambda m, x: [part.append(1) for part in ([], [])],
    ],
)
def test_a_pure_function_is_pure(f: Any) -> None:
    report = fl.check_pure(f, model(), X)
    assert report
    assert repr(report) == "pure"
    assert report.changed == {}
    assert report.draws == ()
    assert report.settings == {}


def test_the_two_lines_are_pure() -> None:
    net = fl.Chain(fl.Dense(2, 3), fl.BatchNorm(3, fl.relu), fl.Dense(3, 1))
    state = fl.setup(fl.Adam(), net)

    def step(net: Any, state: Any, x: Tensor) -> Any:
        return fl.update(state, net, fl.gradient(lambda m: m(x).square().sum(), net))

    assert fl.check_pure(step, net, state, X)


def test_a_setting_that_is_set_back_is_pure() -> None:
    def f(x: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast("cpu"):
            return 2 * x

    assert fl.check_pure(f, X)


# Arguments that change


def changed(f: Any, *args: Any) -> dict[str, tuple[str, ...]]:
    report = fl.check_pure(f, *args)
    assert not report
    return dict(report.changed)


def test_a_write_is_reported_by_path_and_operation() -> None:
    def f(m: Any, x: Tensor) -> None:
        m["layers"][1].weight.mul_(0.5)
        m["layers"][1].weight.mul_(0.5)
        x[0, 0] = 7.0

    assert changed(f, model(), X) == {
        "['layers'][1].weight of argument 0": ("torch.Tensor.mul_",),
        "argument 1": ("torch.Tensor.__setitem__",),
    }


@pytest.mark.parametrize(
    ("write", "operation"),
    [
        (lambda x: torch.add(x, 1, out=x), "torch.add"),
        (lambda x: torch._foreach_mul_([x], 2.0), "torch._foreach_mul_"),
        (lambda x: torch.ops.aten.add_.Tensor(x, x), "torch.ops.aten.add_.Tensor"),
        (lambda x: F.relu(x, inplace=True), "torch.nn.functional.relu"),
        (lambda x: x.view(-1)[:3].add_(1), "torch.Tensor.add_"),
        (lambda x: torch.func.vmap(lambda row: row.add_(1))(x), "torch.Tensor.add_"),
        (lambda x: x.numpy().fill(3.0), "something that torch does not show, such as numpy or .data"),
        (lambda x: x.resize_(2), "torch.Tensor.resize_"),
        (lambda x: x.t_(), "torch.Tensor.t_"),
    ],
)
def test_a_write_is_found_whatever_does_it(write: Any, operation: str) -> None:
    places = changed(write, X)
    assert list(places) == ["argument 0"]
    assert places["argument 0"][0] == operation
    assert torch.equal(X, torch.linspace(-1, 1, 8).reshape(4, 2))


@pytest.mark.parametrize("kernel", [torch.native_batch_norm, torch.batch_norm])
def test_a_kernel_that_does_not_declare_its_writes_is_found(kernel: Any) -> None:
    def f(mean: Tensor, var: Tensor) -> Tensor:
        if kernel is torch.batch_norm:
            return kernel(X, None, None, mean, var, True, 0.1, 1e-5, False)
        return kernel(X, None, None, mean, var, True, 0.1, 1e-5)

    name = f"torch.{kernel.__name__}"
    assert changed(f, torch.zeros(2), torch.ones(2)) == {"argument 0": (name,), "argument 1": (name,)}


def test_writing_to_a_view_is_reported_where_the_memory_stands() -> None:
    whole = torch.zeros(4)
    places = changed(
        lambda tree: tree["part"].add_(1), {"whole": whole, "part": whole[:2], "rest": whole[2:]}
    )
    assert set(places) == {"['part'] of argument 0", "['whole'] of argument 0"}


def test_ties_hold_inside_and_a_tied_tensor_is_named_once() -> None:
    w = torch.ones(2)

    def f(m: Any) -> None:
        assert m["a"] is m["b"]
        m["b"].add_(1)

    assert changed(f, {"a": w, "b": w}) == {"['a'] of argument 0": ("torch.Tensor.add_",)}


def test_arguments_that_share_a_tensor_share_it_inside() -> None:
    w = torch.ones(2)
    assert list(changed(lambda a, b: a.add_(1) if a is b else None, w, w)) == ["argument 0", "argument 1"]


def test_attributes_and_entries_that_are_set_are_reported() -> None:
    def f(m: Any) -> None:
        layer = m["layers"][0]
        layer.weight = layer.weight + 1
        layer.calls += 1
        layer.history.append("called")
        layer.cache = 3
        m["new"] = 1
        m["layers"].append(None)
        del m["name"]

    m = model()
    assert changed(f, m) == dict.fromkeys(
        [
            "['layers'][0].weight of argument 0",
            "['layers'][0].calls of argument 0",
            "['layers'][0].history of argument 0",
            "['layers'][0].cache of argument 0",
            "['layers'][2] of argument 0",
            "['new'] of argument 0",
        ],
        ("setting it",),
    ) | {"['name'] of argument 0": ("deleting it",)}
    assert m["layers"][0].calls == 0
    assert m["layers"][0].history == ["made"]
    assert list(m) == ["layers", "name"]


def test_a_cached_property_is_no_change() -> None:
    @fl.functor
    class Cached:
        def __init__(self) -> None:
            self.w = torch.ones(2)

        @functools.cached_property
        def norm(self) -> Tensor:
            return self.w.norm()

    assert fl.check_pure(lambda m: m.norm, Cached())


def test_a_frozen_layer_that_is_changed_behind_its_back_is_found() -> None:
    @fl.functor
    @dataclass(frozen=True, slots=True)
    class Frozen:
        w: Tensor

    layer = Frozen(torch.ones(2))
    f = lambda m: object.__setattr__(m, "w", torch.zeros(2))  # noqa: E731
    assert changed(f, layer) == {".w of argument 0": ("setting it",)}
    assert layer.w.tolist() == [1.0, 1.0]


def test_backward_into_a_parameter_of_torch_is_reported() -> None:
    p = nn.Parameter(torch.ones(2))
    assert changed(lambda p: (2 * p).sum().backward(), p) == {
        "argument 0": ("backward(), which fills .grad",)
    }
    assert p.grad is None
    p.grad = torch.ones(2)
    assert list(changed(lambda p: (2 * p).sum().backward(), p)) == ["argument 0"]
    assert p.grad.tolist() == [1.0, 1.0]


def test_requires_grad_is_a_change() -> None:
    assert changed(lambda x: x.requires_grad_(), torch.ones(1)) == {
        "argument 0": ("torch.Tensor.requires_grad_",)
    }


def test_donation_is_a_change() -> None:
    net = fl.Dense(2, 1)
    state = fl.setup(fl.Descent(), net)
    grads = fl.gradient(lambda m: m(X).sum(), net)
    places = changed(lambda s, m: fl.update(s, m, grads, donate=True), state, net)
    assert all("donating it" in by for place, by in places.items() if "argument 1" in place)
    assert {".weight of argument 1", ".bias of argument 1"} <= set(places)
    assert net.weight.shape == (1, 2)


def test_numpy_arrays_and_generators_are_watched() -> None:
    def f(a: Any, g: torch.Generator) -> None:
        a[0] = 5
        torch.rand(3, generator=g)

    array, generator = np.zeros(3), torch.Generator()
    state = generator.get_state()
    assert changed(f, array, generator) == {
        "argument 0": ("something that torch does not show, such as numpy or .data",),
        "argument 1": ("torch.rand",),
    }
    assert array[0] == 0
    assert torch.equal(generator.get_state(), state)


@pytest.mark.parametrize(
    "x",
    [
        torch.eye(2).to_sparse(),
        torch.tensor([1 + 1j, 2.0]).conj(),
        torch.ones(2, dtype=torch.bfloat16),
        torch.tensor([float("nan")]),
        torch.ones(0),
        torch.ones(3).expand(2, 3),
        torch.ones(2, device="meta"),
        [[None, {}], (), "text"],
    ],
)
def test_arguments_of_every_kind_are_copied(x: Any) -> None:
    assert fl.check_pure(lambda x: fl.fleaves(x), x)


# What is reached by a closure


def test_a_model_as_the_function_is_copied_and_watched() -> None:
    norm = fl.BatchNorm(2)
    object.__setattr__(norm, "eps", 1e-5)

    @fl.functor
    class Writes:
        def __init__(self) -> None:
            self.mean = torch.zeros(2)

        def __call__(self, x: Tensor) -> Tensor:
            self.mean.add_(x.mean(0) + 1)
            return x

    m = Writes()
    assert changed(m, X) == {".mean of the function": ("torch.Tensor.add_",)}
    assert m.mean.tolist() == [0.0, 0.0]


def test_closed_over_trees_are_named_and_put_back() -> None:
    m, w = model(), torch.ones(3)

    def f(x: Tensor) -> None:
        m["layers"][1].bias.add_(1)
        w[0] = 5
        w.numpy()[1] = 6

    assert changed(f, X) == {
        "['layers'][1].bias of the closed-over m": ("torch.Tensor.add_",),
        "the closed-over w": ("torch.Tensor.__setitem__",),
    }
    assert m["layers"][1].bias.tolist() == [0.0, 0.0]
    assert w.tolist() == [1.0, 1.0, 1.0]


def test_a_tensor_that_is_reached_without_a_name_is_reported_and_put_back() -> None:
    w = torch.ones(3)

    class Holder:
        def __init__(self) -> None:
            self.hidden = [w]

        def step(self, x: Tensor) -> None:
            self.hidden[0].add_(1)

    holder = Holder()
    places = changed(lambda x: holder.step(x), X)
    assert places == {"a closed-over float32 tensor of shape (3,)": ("torch.Tensor.add_",)}
    assert w.tolist() == [1.0, 1.0, 1.0]


def test_a_module_of_torch_is_named_by_its_own_names() -> None:
    norm = nn.BatchNorm1d(2)
    expected = {
        f"['{name}'] of the closed-over {{}}": (operation,)
        for name, operation in [
            ("num_batches_tracked", "torch.Tensor.add_"),
            ("running_mean", "torch.nn.functional.batch_norm"),
            ("running_var", "torch.nn.functional.batch_norm"),
        ]
    }
    assert changed(lambda x: norm(x), X) == {k.format("norm"): v for k, v in expected.items()}
    assert changed(norm, X) == {k.format("module"): v for k, v in expected.items()}
    assert norm.running_mean is not None
    assert norm.running_mean.tolist() == [0.0, 0.0]


def test_what_a_partial_or_a_method_holds_is_named() -> None:
    w = torch.ones(2)
    partial = functools.partial(lambda a, x: a.add_(1), w)
    assert list(changed(partial, X)) == ["the closed-over argument 0 of partial"]
    assert list(changed(w.add_, 1.0)) == ["a closed-over float32 tensor of shape (2,)"]


class Trainer:
    """No tree, and trained as classes of torch's users are."""

    def __init__(self) -> None:
        self.model, self.steps = fl.Dense(2, 1), 0

    @functools.cached_property
    def name(self) -> str:
        return type(self).__name__

    def step(self, x: Tensor) -> None:
        self.steps += len(self.name)
        self.model = fl.Dense(2, 1)


def test_attributes_that_a_method_sets_on_its_object_are_reported() -> None:
    trainer = Trainer()
    for f in (trainer.step, fl.jit(trainer.step), lambda x: trainer.step(x)):
        places = changed(f, X)
        assert [place.partition(" of ")[0] for place in places] == [".model", ".steps"]
        assert set(places.values()) == {("setting it",)}


total = torch.zeros(2)


def test_variables_that_a_function_sets_are_reported() -> None:
    count = 0

    def add(x: Tensor) -> None:
        global total
        total = total + x.sum(0)

    def f(x: Tensor) -> None:
        nonlocal count
        count += 1
        [add(row) for row in [x]]

    assert changed(f, X) == dict.fromkeys(["the closed-over total", "the closed-over count"], ("setting it",))


def test_calling_a_compiled_function_sets_nothing() -> None:
    double = fl.jit(lambda x: 2 * x)
    assert fl.check_pure(lambda x: double(x), X)


def test_a_gradient_that_the_function_made_itself_may_be_written_to() -> None:
    def f(m: Any) -> Tensor:
        grads = fl.gradient(lambda m: (m["w"] ** 2).sum(), m)
        return grads["w"].add_(1)

    assert fl.check_pure(f, {"w": torch.ones(2)})


# Draws


def test_draws_without_a_key_are_named_and_the_generator_is_put_back() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    report = fl.check_pure(lambda x: (torch.randn(3), F.dropout(x), torch.randn(3), x.normal_()), X)
    assert report.draws == ("torch.randn", "torch.nn.functional.dropout", "torch.Tensor.normal_")
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_in_test_mode_draws_nothing() -> None:
    drop = fl.Dropout(0.5)
    assert fl.check_pure(lambda x: drop(x), X)
    with fl.mode("train"):
        assert fl.check_pure(lambda x: drop(x), X).draws


def test_draws_of_a_key_are_pure() -> None:
    def f(key: fl.Key, x: Tensor) -> Tensor:
        with fl.seeded(key), fl.mode("train"):
            return fl.Dropout(0.5)(x) + torch.rand(2)

    assert fl.check_pure(f, fl.Key(0), X)


def test_seeding_numpy_and_python_are_draws_too() -> None:
    assert "torch.manual_seed" in fl.check_pure(lambda: torch.manual_seed(1)).draws[0]
    numpy_state, python_state = np.random.get_state()[1].copy(), random.getstate()
    report = fl.check_pure(lambda: (np.random.rand(), random.random()))
    assert report.draws == ("numpy.random", "Python's random")
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    assert random.getstate() == python_state


def test_a_generator_of_its_own_is_no_draw() -> None:
    assert fl.check_pure(lambda: torch.rand(3, generator=torch.Generator().manual_seed(0)))


# Settings


@pytest.mark.parametrize(
    ("leave", "name", "before", "after"),
    [
        (lambda: torch.set_grad_enabled(False), "grad mode", True, False),
        (lambda: torch.set_default_dtype(torch.float64), "default dtype", torch.float32, torch.float64),
        (
            lambda: torch.set_default_device("meta"),
            "default device",
            torch.device("cpu"),
            torch.device("meta"),
        ),
        (lambda: torch.set_autocast_enabled("cpu", True), "autocast on the CPU", False, True),
        (lambda: torch.use_deterministic_algorithms(True), "use of deterministic algorithms", False, True),
    ],
)
def test_a_setting_left_changed_is_reported_and_set_back(
    leave: Any, name: str, before: Any, after: Any
) -> None:
    report = fl.check_pure(leave)
    assert report.settings == {name: (before, after)}
    assert not report
    assert f"the {name} went from {before} to {after}" in repr(report)
    assert fl.check_pure(lambda: None)


# The check itself


def test_the_report_prints_every_finding_and_what_to_write() -> None:
    def f(x: Tensor) -> None:
        x.add_(1)
        torch.rand(1)
        torch.set_grad_enabled(False)

    assert repr(fl.check_pure(f, X)).splitlines() == [
        "impure:",
        "  argument 0 was changed by torch.Tensor.add_",
        "  (compute new values and return them; a layer moves a buffer by fluxlike.assign)",
        "  torch.rand drew without a key",
        "  (call it in `with fluxlike.seeded(key):`)",
        "  the grad mode went from True to False",
        "  (set it by `with`, which sets it back)",
    ]


def test_an_error_comes_through_and_everything_is_put_back() -> None:
    w = torch.ones(2)

    def f(x: Tensor) -> None:
        w.add_(1)
        torch.set_default_dtype(torch.float64)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fl.check_pure(f, X)
    assert w.tolist() == [1.0, 1.0]
    assert torch.get_default_dtype() == torch.float32


def test_inside_a_transform_it_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="inside a transform; call it outside"):
        torch.func.vmap(lambda x: fl.check_pure(torch.sin, x) and x)(X)


def test_what_is_no_function_is_an_error() -> None:
    with pytest.raises(TypeError, match="found Tensor as the function"):
        fl.check_pure(X, X)  # type: ignore[arg-type]
