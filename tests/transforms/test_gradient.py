"""The outermost gradient: its numbers, its places, its values, and what it leaves alone."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fluxlike as fl


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def mse(model: Any, x: Tensor, y: Tensor) -> Tensor:
    return ((model(x) - y) ** 2).mean()


def filled(layer: Any, source: nn.Module) -> Any:
    """A layer with the weights of a module of torch, as plain tensors of its own."""
    for name in ("weight", "bias", "running_mean", "running_var"):
        if hasattr(layer, name):
            setattr(layer, name, getattr(source, name).detach().clone())
    return layer


def as_structure(tree: Any) -> Any:
    """The treedef of a tree as the library sees it."""
    import optree

    return optree.tree_structure(tree, none_is_leaf=True, namespace="fluxlike")


# The numbers


def test_an_mlp_has_the_gradients_of_backward_to_the_bit() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    model = fl.Chain(
        filled(fl.Dense(5, 8, torch.tanh), module[0]),
        filled(fl.Dense(8, 3), module[2]),
    )
    x, y = randn(7, 5), randn(7, 3, seed=1)
    mse(module, x, y).backward()
    value, grads = fl.withgradient(mse, model, x, y)
    assert torch.equal(value, mse(module, x, y).detach())
    for mine, theirs in ((grads.layers[0], module[0]), (grads.layers[1], module[2])):
        assert torch.equal(mine.weight, theirs.weight.grad)
        assert torch.equal(mine.bias, theirs.bias.grad)


def test_a_cnn_with_batchnorm_has_the_gradients_of_backward_to_the_bit() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * 16, 5),
    ).double()
    model = fl.Chain(
        filled(fl.Conv((3, 3), 3, 4, pad=1), module[0]),
        filled(fl.BatchNorm(4, torch.relu), module[1]),
        fl.MaxPool((2, 2)),
        fl.flatten,
        filled(fl.Dense(4 * 16, 5), module[5]),
    )
    x, y = randn(6, 3, 8, 8), torch.arange(6) % 5
    F.cross_entropy(module(x), y).backward()
    grads = fl.gradient(lambda m, x, y: F.cross_entropy(m(x), y), model, x, y)
    for mine, theirs in ((0, 0), (1, 1), (4, 5)):
        assert torch.equal(grads.layers[mine].weight, module[theirs].weight.grad)
        assert torch.equal(grads.layers[mine].bias, module[theirs].bias.grad)


def test_the_product_of_three_numbers_has_the_golden_gradient() -> None:
    assert fl.gradient(lambda x, y, z: x * y * z, 2.0, 3.0, 5.0, argnums=(0, 1, 2)) == (15.0, 10.0, 6.0)


def test_withgradient_gives_the_golden_value_and_gradient() -> None:
    x = torch.tensor([1.0, 2.0, 4.0])
    (loss, inverse), grad = fl.withgradient(lambda x: ((1 / x).sum(), 1 / x), x)
    assert torch.equal(loss, torch.tensor(1.75))
    assert torch.equal(inverse, torch.tensor([1.0, 0.5, 0.25]))
    assert torch.equal(grad, torch.tensor([-1.0, -0.25, -0.0625]))


def test_a_tied_parameter_has_its_total_at_the_first_place_and_none_at_the_other() -> None:
    w = torch.ones(2)
    grads = fl.gradient(lambda m: (3 * m["x"]).sum() + (13 * m["z"]).sum(), {"x": w, "z": w})
    assert torch.equal(grads["x"], torch.full((2,), 16.0))
    assert grads["z"] is None


def test_equal_tensors_that_are_not_the_same_object_are_not_tied() -> None:
    w = torch.ones(2)
    grads = fl.gradient(lambda m: (3 * m[0]).sum() + (13 * m[1]).sum(), [w, w.clone()])
    assert torch.equal(grads[0], torch.full((2,), 3.0))
    assert torch.equal(grads[1], torch.full((2,), 13.0))


def test_complex_parameters_follow_the_convention_of_torch() -> None:
    w, x = randn(3, dtype=torch.complex128), randn(3, seed=1, dtype=torch.complex128)
    theirs = w.clone().requires_grad_()
    ((theirs * x).sum().abs() + (theirs**2).real.sum()).backward()
    mine = fl.gradient(lambda m: (m["w"] * x).sum().abs() + (m["w"] ** 2).real.sum(), {"w": w})
    assert torch.equal(mine["w"], theirs.grad)


# None, constants and buffers


def test_a_parameter_that_the_loss_does_not_reach_gets_none() -> None:
    model = {"used": torch.ones(2), "unused": torch.ones(2), "zero": torch.ones(2)}
    grads = fl.gradient(lambda m: m["used"].sum() + (0 * m["zero"]).sum(), model)
    assert grads["unused"] is None
    assert torch.equal(grads["zero"], torch.zeros(2))


def test_a_loss_that_reaches_nothing_gives_none_everywhere() -> None:
    value, grads = fl.withgradient(lambda m: torch.tensor(2.0), {"w": torch.ones(2)})
    assert grads == {"w": None}
    assert value == 2.0


def test_constants_buffers_and_integers_get_none() -> None:
    model = {"w": torch.ones(2), "n": torch.tensor(3), "name": "w", "rate": 0.5, "f": torch.relu}
    grads = fl.gradient(lambda m: (m["f"](m["w"]) * m["n"] * m["rate"]).sum(), model)
    assert {k: v for k, v in grads.items() if k != "w"} == dict.fromkeys(["n", "name", "rate", "f"])
    assert torch.equal(grads["w"], torch.full((2,), 1.5))


def test_the_gradient_has_the_treedef_of_the_argument() -> None:
    class Pair(NamedTuple):
        a: Any
        b: Any

    model = Pair([fl.Dense(2, 3, fl.relu), ()], {"norm": fl.BatchNorm(3), "none": None})
    grads = fl.gradient(lambda m, x: m.b["norm"](m.a[0](x)).sum(), model, torch.ones(4, 2))
    assert as_structure(grads) == as_structure(model)
    assert type(grads) is Pair
    assert type(grads.b["norm"]) is fl.BatchNorm


def test_a_module_parameter_is_read_as_its_value() -> None:
    module = nn.Linear(3, 2)
    tree = dict(module.named_parameters())
    value, grads = fl.withgradient(
        lambda p, x: F.linear(x, p["weight"], p["bias"]).sum(), tree, torch.ones(1, 3)
    )
    assert torch.equal(grads["weight"], torch.ones(2, 3))
    assert type(grads["weight"]) is Tensor
    assert not grads["weight"].requires_grad
    assert not value.requires_grad
    assert module.weight.grad is None
    assert module.weight.requires_grad


def test_a_closed_over_module_parameter_is_a_constant_and_keeps_its_grad_field() -> None:
    p = nn.Parameter(torch.full((2,), 3.0))
    value, grads = fl.withgradient(lambda w: (w * p).sum(), torch.ones(2))
    assert torch.equal(grads, torch.full((2,), 3.0))
    assert p.grad is None
    assert not value.requires_grad


def test_a_target_that_shares_the_tensors_of_the_model_is_constant() -> None:
    model = fl.f64(fl.Dense(3, 2))
    x = randn(4, 3)

    def loss(m: Any, target: Any) -> Tensor:
        return ((m(x) - 2 * target(x)) ** 2).mean()

    shared = fl.gradient(loss, model, model)
    apart = fl.gradient(loss, model, fl.tree.clone(model))
    assert torch.equal(shared.weight, apart.weight)
    assert torch.equal(shared.bias, apart.bias)


def test_a_model_that_is_closed_over_too_is_constant_there() -> None:
    model = {"w": torch.tensor(3.0)}
    assert fl.gradient(lambda m: m["w"] * model["w"], model) == {"w": torch.tensor(3.0)}


def test_an_argument_given_twice_has_a_gradient_for_each() -> None:
    w = torch.tensor(3.0)
    assert fl.gradient(lambda a, b: a * b**2, w, w, argnums=(0, 1)) == (torch.tensor(9.0), torch.tensor(18.0))


# argnums


@pytest.mark.parametrize(("argnums", "expected"), [(0, 15.0), (1, 10.0), (-1, 6.0), ((2, 0), (6.0, 15.0))])
def test_argnums_choose_the_arguments_in_their_order(argnums: Any, expected: Any) -> None:
    assert fl.gradient(lambda x, y, z: x * y * z, 2.0, 3.0, 5.0, argnums=argnums) == expected


def test_a_tuple_of_one_argnum_gives_a_tuple() -> None:
    assert fl.gradient(lambda x: x**2, 3.0, argnums=(0,)) == (6.0,)


@pytest.mark.parametrize("argnums", [2, -3, (0, 0), (0, -2), ()])
def test_argnums_that_name_no_argument_or_one_twice_are_an_error(argnums: Any) -> None:
    with pytest.raises(ValueError, match=r"argnums=.* does not name different ones of the 2 arguments"):
        fl.gradient(lambda x, y: x * y, 2.0, 3.0, argnums=argnums)


def test_a_float_argument_gives_a_python_float() -> None:
    grad = fl.gradient(lambda x: x**3, 2.0)
    assert type(grad) is float
    assert grad == 12.0


def test_a_float_that_the_loss_does_not_reach_gives_none() -> None:
    assert fl.gradient(lambda x, y: y**2, 2.0, torch.tensor(3.0)) is None


# wrt


def two_parts() -> dict[str, Any]:
    return {"body": {"w": torch.tensor(2.0), "v": torch.tensor(5.0)}, "head": torch.tensor(3.0)}


def three_factors(m: Any) -> Tensor:
    return m["body"]["w"] * m["body"]["v"] * m["head"]


@pytest.mark.parametrize(
    ("wrt", "chosen"),
    [
        (lambda m: m["head"], {"head"}),
        ("['head']", {"head"}),
        (lambda m: m["body"], {"w", "v"}),
        (lambda m: (m["body"]["v"], m["head"]), {"v", "head"}),
        (lambda path, x: path.endswith("['v']"), {"v"}),
        (("['head']", lambda m: m["body"]["w"]), {"w", "head"}),
        (lambda m: m, {"w", "v", "head"}),
    ],
    ids=["selector", "path", "selector of a node", "several", "predicate", "tuple", "whole"],
)
def test_wrt_differentiates_the_chosen_places_alone(wrt: Any, chosen: set[str]) -> None:
    grads = fl.gradient(three_factors, two_parts(), wrt=wrt)
    flat = {**grads["body"], "head": grads["head"]}
    expected = {"w": 15.0, "v": 6.0, "head": 10.0}
    assert {k: None if g is None else float(g) for k, g in flat.items()} == {
        k: v if k in chosen else None for k, v in expected.items()
    }
    assert as_structure(grads) == as_structure(two_parts())


def counting_identity() -> tuple[Callable[[Tensor], Tensor], list[int]]:
    """An identity, and a list that grows each time its backward pass is computed."""
    calls: list[int] = []

    class Identity(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            calls.append(1)
            return g

    return Identity.apply, calls


def test_wrt_does_not_compute_the_backward_pass_of_what_it_leaves_out() -> None:
    through, calls = counting_identity()
    model = {"body": torch.ones(3), "head": torch.ones(3)}

    def loss(m: Any) -> Tensor:
        return (through(m["body"]) * m["head"]).sum()

    fl.gradient(loss, model)
    assert len(calls) == 1
    fl.gradient(loss, model, wrt="['head']")
    assert len(calls) == 1


def test_wrt_leaves_out_module_parameters_too() -> None:
    through, calls = counting_identity()
    model = {"body": nn.Parameter(torch.ones(3)), "head": nn.Parameter(torch.ones(3))}
    grads = fl.gradient(lambda m: (through(m["body"]) * m["head"]).sum(), model, wrt="['head']")
    assert not calls
    assert grads["body"] is None
    assert model["body"].grad is None


def test_a_tied_parameter_is_within_wrt_if_any_of_its_places_is() -> None:
    w = torch.tensor(2.0)
    grads = fl.gradient(lambda m: 3 * m["a"] + 13 * m["b"], {"a": w, "b": w}, wrt="['b']")
    assert grads == {"a": torch.tensor(16.0), "b": None}


def test_wrt_leaves_out_complex_parameters() -> None:
    model = {"c": torch.ones(2, dtype=torch.complex64), "w": torch.ones(2)}
    grads = fl.gradient(lambda m: (m["c"].abs() * m["w"]).sum(), model, wrt="['w']")
    assert grads["c"] is None
    assert torch.equal(grads["w"], torch.ones(2))


def test_wrt_does_not_stop_assigned_buffers() -> None:
    model = fl.Chain(fl.BatchNorm(2), fl.Dense(2, 1))
    grads = fl.gradient(lambda m, x: m(x).sum(), model, torch.randn(4, 2), wrt=lambda m: m.layers[1])
    assert isinstance(grads.layers[0].running_mean, fl.Assigned)
    assert grads.layers[0].weight is None


# The value


class Named(NamedTuple):
    logits: Tensor
    loss: Tensor


@dataclass
class Result:
    logits: Tensor
    loss: Tensor
    note: str = "kept"


@dataclass
class ModelOutput(OrderedDict):  # type: ignore[type-arg]
    """As in transformers: a dict, a dataclass and a sequence at once."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    states: tuple[Tensor, ...] | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) is not None:
                self[field.name] = getattr(self, field.name)

    def __getitem__(self, key: Any) -> Any:
        return dict(self.items())[key] if isinstance(key, str) else tuple(self.values())[key]

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        super().__setattr__(key, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self and value is not None:
            super().__setitem__(name, value)
        super().__setattr__(name, value)

    def __reduce__(self) -> Any:
        rebuild, _, *rest = super().__reduce__()
        return rebuild, tuple(getattr(self, f.name) for f in fields(self)), *rest


OUTPUTS: dict[str, tuple[Callable[..., Any], Callable[[Any], tuple[Tensor, Tensor]]]] = {
    "tuple": (lambda loss, y: (loss, y), lambda v: v),
    "dict": (lambda loss, y: {"logits": y, "loss": loss}, lambda v: (v["loss"], v["logits"])),
    "named tuple": (lambda loss, y: Named(y, loss), lambda v: (v.loss, v.logits)),
    "dataclass": (lambda loss, y: Result(y, loss), lambda v: (v.loss, v.logits)),
    "transformers": (lambda loss, y: ModelOutput(loss, y, (y,)), lambda v: (v["loss"], v.logits)),
    "nested": (lambda loss, y: (loss, {"deep": [Result(y, loss)]}), lambda v: (v[0], v[1]["deep"][0].logits)),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_what_comes_beside_the_loss_comes_back_without_a_graph(kind: str) -> None:
    pack, unpack = OUTPUTS[kind]
    returned = []

    def f(w: Tensor, x: Tensor) -> Any:
        y = w * x
        returned.append(pack(y.sum(), y))
        return returned[0]

    value, grad = fl.withgradient(f, torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    loss, logits = unpack(value)
    assert type(value) is type(returned[0])
    assert torch.equal(grad, torch.tensor([3.0, 4.0]))
    assert torch.equal(loss, torch.tensor(11.0))
    assert torch.equal(logits, torch.tensor([3.0, 8.0]))
    assert not loss.requires_grad
    assert not logits.requires_grad


def test_an_output_of_transformers_is_detached_in_every_view_of_it() -> None:
    value, _ = fl.withgradient(lambda w: ModelOutput(w.sum(), w * 2, (w * 3,)), torch.ones(2))
    for x in (value.loss, value["loss"], value[1], value.logits, value.states[0], value["states"][0]):
        assert not x.requires_grad


def test_other_objects_in_the_value_pass_through() -> None:
    marker = object()
    (_, *rest), _ = fl.withgradient(lambda w: (w.sum(), marker, "text", None, 3), torch.ones(2))
    assert rest == [marker, "text", None, 3]


# Modes of torch around the call


def test_it_works_under_no_grad() -> None:
    with torch.no_grad():
        grad = fl.gradient(lambda w: (w**2).sum(), torch.tensor([1.0, 2.0]))
        assert not torch.is_grad_enabled()
    assert torch.equal(grad, torch.tensor([2.0, 4.0]))
    assert not grad.requires_grad


def test_a_part_of_the_loss_under_no_grad_is_constant() -> None:
    def loss(w: Tensor) -> Tensor:
        with torch.no_grad():
            target = w * 2
        return (w * target).sum()

    assert torch.equal(fl.gradient(loss, torch.tensor([1.0, 2.0])), torch.tensor([2.0, 4.0]))


def test_autocast_is_respected() -> None:
    module = nn.Linear(16, 8)
    model = filled(fl.Dense(16, 8), module)
    x = randn(4, 16, dtype=torch.float32)
    seen = []

    def loss(m: Any) -> Tensor:
        y = m(x)
        seen.append(y.dtype)
        return y.float().square().sum()

    with torch.autocast("cpu", dtype=torch.bfloat16):
        theirs = loss(module)
        mine = fl.gradient(loss, model)
    theirs.backward()
    assert seen == [torch.bfloat16] * 2
    assert mine.weight.dtype == torch.float32
    assert torch.equal(mine.weight, module.weight.grad)
    assert torch.equal(mine.bias, module.bias.grad)


def test_under_autocast_each_call_sees_the_newest_weights() -> None:
    x = torch.ones(1, 8)
    state = fl.setup(fl.Descent(1.0), model := fl.Dense(8, 4, init=torch.zeros))
    losses = []
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in range(3):
            value, grads = fl.withgradient(lambda m: m(x).float().sum(), model)
            losses.append(float(value))
            model, state = fl.update(state, model, grads)
    assert losses == [0.0, -36.0, -72.0]


# What it leaves alone


def test_the_model_passed_in_is_unchanged() -> None:
    model = fl.Chain(fl.Dense(3, 4, fl.relu), fl.BatchNorm(4), fl.Dense(4, 1))
    copy = fl.tree.clone(model)
    tensors = fl.fleaves(model)
    fl.gradient(lambda m, x: m(x).sum(), model, torch.randn(5, 3))
    assert all(a is b for a, b in zip(fl.fleaves(model), tensors, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(tensors, fl.fleaves(copy), strict=True))
    assert not any(t.requires_grad for t in tensors)
    assert all(t.grad is None for t in tensors)


def test_global_state_is_untouched() -> None:
    before = torch.random.get_rng_state(), torch.is_grad_enabled(), torch.get_default_dtype()
    fl.gradient(lambda m, x: m(x).sum(), fl.Dense(3, 1, init=torch.ones), torch.ones(2, 3))
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert (torch.is_grad_enabled(), torch.get_default_dtype()) == before[1:]
    assert not fl.training()


def test_draws_in_the_loss_are_those_of_torch() -> None:
    model, x = fl.Dropout(0.5), torch.ones(64)
    torch.manual_seed(3)
    expected = F.dropout(x, 0.5)
    after = torch.random.get_rng_state()
    torch.manual_seed(3)
    grads = fl.gradient(lambda m, w: (m["drop"](w) * m["w"]).sum(), {"drop": model, "w": x}, x)
    assert torch.equal(grads["w"], expected)
    assert torch.equal(torch.random.get_rng_state(), after)


def test_a_layer_trains_inside_and_tests_outside() -> None:
    seen = []

    def loss(m: Any) -> Tensor:
        seen.append(fl.training())
        return m.weight.sum()

    fl.gradient(loss, fl.Dense(2, 1))
    assert seen == [True]
    assert not fl.training()


def test_the_gradient_of_an_input_inherits_the_mode() -> None:
    seen = []

    def f(x: Tensor) -> Tensor:
        seen.append(fl.training())
        return x.sum()

    fl.gradient(f, torch.ones(2))
    with fl.mode("train"):
        fl.gradient(f, torch.ones(2))
    assert seen == [False, True]


@pytest.mark.parametrize("grad_enabled", [True, False])
def test_an_exception_in_the_function_restores_everything(grad_enabled: bool) -> None:
    model = fl.Chain(fl.Dense(2, 2), fl.BatchNorm(2))

    def fails(m: Any) -> Tensor:
        m(torch.randn(3, 2))
        raise KeyError("mine")

    with torch.set_grad_enabled(grad_enabled):
        with pytest.raises(KeyError, match="mine"):
            fl.gradient(fails, model)
        assert torch.is_grad_enabled() is grad_enabled
    assert not fl.training()
    fl.assign(model.layers[1].running_mean, torch.full((2,), 9.0))  # no scope is left to take it
    grads = fl.gradient(lambda m: m.layers[0].weight.sum(), model)
    assert not grads.layers[0].weight.requires_grad  # it was an outermost call
    assert grads.layers[1].running_mean is None


def test_an_exception_in_a_nested_gradient_leaves_the_outer_one_whole() -> None:
    def inner(x: Tensor) -> Tensor:
        raise KeyError("mine")

    def outer(w: Tensor) -> Tensor:
        with pytest.raises(KeyError, match="mine"):
            fl.gradient(inner, w)
        return fl.gradient(lambda x: (x**3).sum(), w).sum()

    assert torch.equal(fl.gradient(outer, torch.tensor([1.0, 2.0])), torch.tensor([6.0, 12.0]))


def test_an_exception_inside_functorch_closes_its_level() -> None:
    def f(x: Tensor) -> Tensor:
        with pytest.raises(KeyError, match="mine"):
            fl.gradient(lambda w: {}["mine"], x)
        return fl.gradient(lambda w: w**3, x)

    assert torch.equal(torch.func.grad(f)(torch.tensor(2.0)), torch.tensor(12.0))


# Threads


def test_threads_compute_the_gradients_that_they_would_alone() -> None:
    model = fl.f64(fl.Chain(fl.Dense(4, 6, fl.tanh), fl.BatchNorm(6), fl.Dense(6, 1)))
    batches = [randn(8, 4, seed=s) for s in range(8)]

    def task(x: Tensor) -> Any:
        return fl.gradient(lambda m: (m(x) ** 2).mean(), model)

    alone = [task(x) for x in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(task, batches))
    for a, b in zip(alone, together, strict=True):
        assert fl.tree.allclose(a, b, rtol=0, atol=1e-15)


def test_the_scope_of_a_gradient_belongs_to_its_thread() -> None:
    inside, done = threading.Event(), threading.Event()

    def loss(m: Any) -> Tensor:
        inside.set()
        assert done.wait(20)
        return m.weight.sum()

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(fl.gradient, loss, fl.Dense(2, 1))
        assert inside.wait(20)
        assert not fl.training()
        grad = fl.gradient(lambda w: (w**2).sum(), torch.ones(2))
        assert not grad.requires_grad  # outermost here, though another thread is inside one
        done.set()
        future.result()
