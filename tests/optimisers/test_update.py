"""`update` and `steps`: what moves, what stays the same object, and what can be differentiated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optree
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import fluxlike as fl


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def chain() -> Any:
    model = fl.Chain(fl.Dense(3, 4, fl.tanh), fl.BatchNorm(4), fl.Dense(4, 1))
    return fl.fmap(lambda x: x.double(), model)


def loss(model: Any, x: Tensor) -> Tensor:
    return (model(x) ** 2).mean()


def structure(tree: Any) -> Any:
    return optree.tree_structure(tree, none_is_leaf=True, namespace="fluxlike")


RULES = [
    fl.Descent(0.1),
    fl.Momentum(0.1),
    fl.Nesterov(0.1),
    fl.Adam(0.1),
    fl.AdamW(0.1),
    fl.OptimiserChain(fl.ClipGlobalNorm(0.1), fl.ClipNorm(0.1), fl.WeightDecay(0.1), fl.Adam(0.1)),
]
each_rule = pytest.mark.parametrize("rule", RULES, ids=lambda r: type(r).__name__)


# What comes back


@each_rule
def test_model_and_state_keep_their_treedefs(rule: Any) -> None:
    model = chain()
    state = fl.setup(rule, model)
    moved, after = fl.update(state, model, fl.gradient(loss, model, randn(5, 3)))
    assert structure(moved) == structure(model)
    assert structure(after) == structure(state)


@each_rule
def test_nothing_that_was_passed_in_is_changed(rule: Any) -> None:
    model = chain()
    state = fl.setup(rule, model)
    model, state = fl.update(state, model, fl.gradient(loss, model, randn(5, 3)))
    grads = fl.gradient(loss, model, randn(5, 3, seed=1))

    def content() -> list[Tensor]:
        return [x.clone() for tree in (state, model, grads) for x in fl.fleaves(tree)]

    before = content()
    fl.update(state, model, grads)
    fl.steps(state, model, grads)
    assert all(torch.equal(a, b) for a, b in zip(before, content(), strict=True))


@each_rule
def test_two_updates_from_one_state_are_equal(rule: Any) -> None:
    model = chain()
    state, grads = fl.setup(rule, model), fl.gradient(loss, model, randn(5, 3))
    first, second = fl.update(state, model, grads), fl.update(state, model, grads)
    assert fl.tree.allclose(first, second, rtol=0, atol=0)


def test_results_share_no_memory_with_what_moved() -> None:
    model = {"w": torch.ones(3)}
    grads = {"w": torch.ones(3)}
    moved, state = fl.update(fl.setup(fl.Momentum(1.0), model), model, grads)
    grads["w"].fill_(9.0)
    model["w"].fill_(9.0)
    assert torch.equal(moved["w"], torch.zeros(3))
    assert torch.equal(state["w"].state, torch.ones(3))


@each_rule
def test_steps_are_what_update_subtracts(rule: Any) -> None:
    model = chain()
    state, grads = fl.setup(rule, model), fl.gradient(loss, model, randn(5, 3))
    taken, after = fl.steps(state, model, grads)
    moved, expected = fl.update(state, model, grads)
    assert structure(taken) == structure(model)
    assert taken.layers[1].running_mean is None
    assert fl.tree.allclose(after, expected, rtol=0, atol=0)
    for x, d, y in zip(fl.trainables(model), fl.trainables(taken), fl.trainables(moved), strict=True):
        assert_close(x - d, y, rtol=0, atol=1e-15)


def test_steps_of_tied_parameters_stand_at_the_first_place() -> None:
    w = torch.ones(2)
    model = {"a": w, "b": w}
    taken, _ = fl.steps(fl.setup(fl.Descent(1.0), model), model, {"a": None, "b": torch.ones(2)})
    assert torch.equal(taken["a"], torch.ones(2))
    assert taken["b"] is None


def test_a_module_parameter_becomes_a_plain_tensor() -> None:
    module = torch.nn.Linear(2, 1)
    params = dict(module.named_parameters())
    moved, state = fl.update(
        fl.setup(fl.Adam(), params), params, {k: torch.ones_like(p) for k, p in params.items()}
    )
    for x in (*moved.values(), *fl.fleaves(state)):
        assert type(x) is Tensor
        assert not x.requires_grad
    assert module.weight.requires_grad


def test_a_parameter_with_a_history_stays_differentiable() -> None:
    source = torch.ones(2, requires_grad=True)
    model = {"w": source * 2}
    moved, _ = fl.update(fl.setup(fl.Descent(0.1), model), model, {"w": torch.ones(2)})
    moved["w"].sum().backward()
    assert torch.equal(source.grad, torch.full((2,), 2.0))


# None, frozen, ties


@each_rule
def test_without_a_gradient_a_parameter_and_its_state_are_the_same_objects(rule: Any) -> None:
    model = {"a": randn(2), "b": randn(2, seed=1)}
    model, state = fl.update(fl.setup(rule, model), model, {"a": randn(2), "b": randn(2)})
    moved, after = fl.update(state, model, {"a": randn(2), "b": None})
    assert moved["b"] is model["b"]
    assert after["b"] is state["b"]
    assert moved["a"] is not model["a"]


@each_rule
def test_no_gradient_at_all_changes_nothing(rule: Any) -> None:
    model = {"a": randn(2), "b": [randn(2, seed=1)]}
    state = fl.setup(rule, model)
    with pytest.warns(UserWarning, match="found no gradient"):
        moved, after = fl.update(state, model, {"a": None, "b": [None]})
    assert moved["a"] is model["a"]
    assert after["b"][0] is state["b"][0]


@each_rule
def test_a_zero_gradient_is_not_none(rule: Any) -> None:
    model = {"a": randn(2)}
    _, state = fl.update(fl.setup(rule, model), model, {"a": torch.zeros(2).double()})
    counters = [x for x in fl.fleaves(state) if x.dtype == torch.int64]
    assert all(x == 1 for x in counters)


@each_rule
def test_partial_gradients_at_tied_places_are_added(rule: Any) -> None:
    w, a, b = randn(3), randn(3, seed=1), randn(3, seed=2)
    model = {"x": w, "y": w}
    state = fl.setup(rule, model)
    both, both_state = fl.update(state, model, {"x": a, "y": b})
    total, total_state = fl.update(state, model, {"x": a + b, "y": None})
    assert both["x"] is both["y"]
    assert torch.equal(both["x"], total["x"])
    assert both_state["x"] is both_state["y"]
    assert fl.tree.allclose(both_state, total_state, rtol=0, atol=0)


def test_tied_parameters_stay_tied_through_training() -> None:
    w = randn(4, 4)
    model = {"encoder": w, "decoder": w, "other": randn(4)}
    state = fl.setup(fl.Adam(0.1), model)
    for _ in range(3):
        grads = fl.gradient(lambda m: (m["encoder"] @ m["decoder"].T @ m["other"]).sum(), model)
        model, state = fl.update(state, model, grads)
    assert model["encoder"] is model["decoder"]
    assert state["encoder"].state.exp_avg is state["decoder"].state.exp_avg


def test_leaves_that_move_at_different_times_count_apart() -> None:
    model = {"a": randn(2), "b": randn(2), "c": randn(2)}
    theirs = {k: x.clone().requires_grad_() for k, x in model.items()}
    optimiser = torch.optim.Adam(list(theirs.values()), 0.1)
    state = fl.setup(fl.Adam(0.1), model)
    for t in range(8):
        grads = {k: randn(2, seed=10 * t + i) for i, k in enumerate("abc")}
        if t in (1, 2):
            grads["b"] = None
        if t == 4:
            grads["c"] = None
        model, state = fl.update(state, model, grads)
        for k, g in grads.items():
            theirs[k].grad = g
        optimiser.step()
    assert [int(state[k].state.step) for k in "abc"] == [8, 6, 7]
    assert_close(model, {k: x.detach() for k, x in theirs.items()}, rtol=1e-12, atol=1e-12)


# Buffers and other leaves


def test_assigned_is_put_into_the_model() -> None:
    model = chain()
    grads = fl.gradient(loss, model, randn(5, 3))
    moved, _ = fl.update(fl.setup(fl.Descent(0.1), model), model, grads)
    assert torch.equal(moved.layers[1].running_mean, grads.layers[1].running_mean.value)
    assert torch.equal(moved.layers[1].running_var, grads.layers[1].running_var.value)


def test_assigned_is_put_at_all_places_of_a_tied_buffer() -> None:
    norm = fl.BatchNorm(2)
    model = fl.Chain(norm, norm)
    updates = fl.at(fl.fmap(lambda x: None, model), ".layers[0].running_mean").set(fl.Assigned(torch.ones(2)))
    moved, _ = fl.update(fl.freeze(fl.setup(fl.Descent(0.1), model)), model, updates)
    assert moved.layers[0].running_mean is moved.layers[1].running_mean


def test_constants_and_integers_stay_the_same_objects() -> None:
    model = {"w": torch.ones(2), "n": torch.tensor(3), "f": fl.relu, "none": None}
    moved, _ = fl.update(fl.setup(fl.Descent(0.1), model), model, fl.gradient(lambda m: m["w"].sum(), model))
    assert moved["n"] is model["n"]
    assert moved["f"] is model["f"]


def test_an_embedding_with_sparse_gradients_moves_as_with_dense_ones() -> None:
    model = {"table": randn(6, 3)}
    indices = torch.tensor([1, 4, 1])

    def look_up(m: Any, sparse: bool) -> Tensor:
        return (torch.nn.functional.embedding(indices, m["table"], sparse=sparse) ** 2).sum()

    sparse, dense = (fl.gradient(look_up, model, s) for s in (True, False))
    assert sparse["table"].is_sparse
    for rule in RULES:
        a, _ = fl.update(fl.setup(rule, model), model, sparse)
        b, _ = fl.update(fl.setup(rule, model), model, dense)
        assert_close(a, b, rtol=1e-15, atol=1e-15)
        assert not a["table"].is_sparse


def test_mixed_dtypes_move_each_in_its_own() -> None:
    model = {"h": torch.ones(2).half(), "f": torch.ones(2), "d": torch.ones(2).double()}
    moved, _ = fl.update(fl.setup(fl.Adam(0.5), model), model, model)
    assert {k: x.dtype for k, x in moved.items()} == {k: x.dtype for k, x in model.items()}
    for x in moved.values():
        assert_close(x, torch.full((2,), 0.5, dtype=x.dtype))


def test_memory_formats_are_kept() -> None:
    w = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    moved, _ = fl.update(fl.setup(fl.Adam(), {"w": w}), {"w": w}, {"w": w})
    assert moved["w"].is_contiguous(memory_format=torch.channels_last)


@each_rule
def test_transposed_expanded_and_overlapping_parameters_move_as_copies_of_them(rule: Any) -> None:
    base = randn(4, 3)
    model = {"t": base.T, "e": randn(1).expand(3), "head": base[:3], "tail": base[1:]}
    copies = {k: x.clone(memory_format=torch.contiguous_format) for k, x in model.items()}
    grads = {k: randn(*x.shape, seed=1) for k, x in model.items()}
    kept = base.clone()
    moved, _ = fl.update(fl.setup(rule, model), model, grads)
    expected, _ = fl.update(fl.setup(rule, copies), copies, grads)
    assert_close(moved, expected, rtol=1e-14, atol=1e-14)
    assert torch.equal(base, kept)


def test_large_leaves_that_have_moved_apart_equal_torch() -> None:
    model = {k: randn(90_000, seed=i) for i, k in enumerate("abcd")}
    theirs = {k: x.clone().requires_grad_() for k, x in model.items()}
    optimiser = torch.optim.AdamW(list(theirs.values()), 0.1)
    state = fl.setup(fl.AdamW(0.1), model)
    for t in range(3):
        grads = {k: None if (k, t) == ("b", 1) else randn(90_000, seed=10 + t) for k in model}
        model, state = fl.update(state, model, grads)
        for k, g in grads.items():
            theirs[k].grad = g
        optimiser.step()
    assert_close(model, {k: x.detach() for k, x in theirs.items()}, rtol=1e-12, atol=1e-12)


def test_an_empty_parameter_moves_without_an_error() -> None:
    model = {"w": torch.ones(0, 3), "v": torch.ones(2)}
    moved, _ = fl.update(fl.setup(fl.Adam(), model), model, model)
    assert moved["w"].shape == (0, 3)


# The state is a tree


def train(model: Any, state: Any, seeds: range) -> tuple[Any, Any]:
    for s in seeds:
        model, state = fl.update(state, model, fl.gradient(loss, model, randn(5, 3, seed=s)))
    return model, state


@each_rule
def test_a_run_resumes_from_a_file_exactly(rule: Any, tmp_path: Path) -> None:
    start = chain()
    model, state = train(start, fl.setup(rule, start), range(3))
    fl.save(tmp_path / "run.safetensors", {"model": model, "state": state})
    run = fl.load(tmp_path / "run.safetensors", like={"model": start, "state": fl.setup(rule, start)})
    straight, resumed = train(model, state, range(3, 6)), train(run["model"], run["state"], range(3, 6))
    assert fl.tree.allclose(straight, resumed, rtol=0, atol=0)


@each_rule
def test_a_state_cast_to_float64_goes_on_with_a_cast_model(rule: Any) -> None:
    model = {"w": torch.tensor([1.0, 2.0])}
    model, state = fl.update(fl.setup(rule, model), model, {"w": torch.ones(2)})
    model, state = fl.f64(model), fl.f64(state)
    model, state = fl.update(state, model, {"w": torch.ones(2).double()})
    assert {x.dtype for x in fl.fleaves((model, state)) if x.is_floating_point()} <= {torch.float64}
    counters = [x for x in fl.fleaves(state) if not x.is_floating_point()]
    assert all(x.dtype == torch.int64 and x == 2 for x in counters)


@each_rule
def test_a_state_moves_between_devices(rule: Any) -> None:
    model = chain()
    state = fl.setup(rule, model)
    meta = fl.to_device(state, "meta")
    assert all(x.is_meta for x in fl.fleaves(meta))
    assert fl.tree.allclose(fl.to_device(state, "cpu"), state, rtol=0, atol=0)


# Differentiable


def test_the_derivative_by_the_rate_of_descent() -> None:
    g = randn(3)
    model = {"w": randn(3, seed=1)}

    def after(lr: Any) -> Tensor:
        moved, _ = fl.update(fl.setup(fl.Descent(lr), model), model, {"w": g})
        return (moved["w"] ** 2).sum()

    expected = float(-2 * ((model["w"] - 0.1 * g) * g).sum())
    assert fl.gradient(after, 0.1) == pytest.approx(expected, rel=1e-12)


DIFFERENTIABLE = {
    "Descent": fl.Descent,
    "Momentum": fl.Momentum,
    "Nesterov": fl.Nesterov,
    "Adam": fl.Adam,
    "AdamW": fl.AdamW,
    "WeightDecay": fl.WeightDecay,
    "ClipGrad": fl.ClipGrad,
    "ClipNorm": fl.ClipNorm,
    "ClipGlobalNorm": fl.ClipGlobalNorm,
}


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_every_rule_is_differentiable_by_its_first_hyperparameter_over_several_leaves(name: str) -> None:
    model = {"a": randn(2), "b": randn(3, seed=1), "c": randn(2, 2, seed=2)}

    def after(value: Tensor) -> Tensor:
        state, m = fl.setup(DIFFERENTIABLE[name](value), model), model
        for s in range(2):
            m, state = fl.update(state, m, {k: x + randn(*x.shape, seed=s) for k, x in m.items()})
        return sum((x**2).sum() for x in m.values())

    at, h = torch.tensor(0.1, dtype=torch.float64), 1e-6
    numeric = (after(at + h) - after(at - h)) / (2 * h)
    assert_close(fl.gradient(after, at), numeric, rtol=1e-6, atol=1e-9)


def test_the_derivative_by_momentum() -> None:
    g1, g2, w = randn(3), randn(3, seed=1), randn(3, seed=2)

    def after(momentum: Any) -> Tensor:
        state, x = fl.setup(fl.Momentum(0.1, momentum), w), w
        for g in (g1, g2):
            x, state = fl.update(state, x, g)
        return x.sum()

    assert fl.gradient(after, 0.9) == pytest.approx(float(-0.1 * g1.sum()), rel=1e-12)


@pytest.mark.parametrize("name", ["lr", "beta1", "beta2", "eps", "weight_decay"])
@pytest.mark.parametrize("rule", [fl.Adam, fl.AdamW])
def test_adam_is_differentiable_by_its_hyperparameters(rule: Any, name: str) -> None:
    gs, w = [randn(3, seed=s) for s in range(3)], randn(3, seed=9)
    values = {"lr": 0.1, "beta1": 0.8, "beta2": 0.9, "eps": 0.01, "weight_decay": 0.05}

    def after(value: Tensor) -> Tensor:
        h = {**values, name: value}
        made = rule(h["lr"], (h["beta1"], h["beta2"]), h["eps"], h["weight_decay"])
        state, x = fl.setup(made, w), w
        for g in gs:
            x, state = fl.update(state, x, g + x)
        return (x**2).sum()

    at = torch.tensor(values[name], dtype=torch.float64)
    h = 1e-6
    numeric = (after(at + h) - after(at - h)) / (2 * h)
    assert_close(fl.gradient(after, at), numeric, rtol=1e-6, atol=1e-9)


def test_the_derivative_by_an_adjusted_rate() -> None:
    g, w = randn(3), randn(3, seed=1)
    state = fl.setup(fl.Descent(0.5), w)
    slope = fl.gradient(lambda lr: fl.update(fl.adjust(state, lr), w, g)[0].sum(), 0.1)
    assert slope == pytest.approx(float(-g.sum()), rel=1e-12)


@each_rule
def test_an_update_inside_a_gradient_is_differentiable_by_the_gradients(rule: Any) -> None:
    w = randn(3)

    def after(g: Tensor) -> Tensor:
        moved, _ = fl.update(fl.setup(rule, w), w, g)
        return (moved**2).sum()

    g = 0.01 * randn(3, seed=1)
    h = 1e-7
    numeric = torch.stack([(after(g + h * e) - after(g - h * e)) / (2 * h) for e in torch.eye(3).double()])
    assert_close(fl.gradient(after, g), numeric, rtol=1e-5, atol=1e-7)


def test_outside_a_gradient_the_results_of_update_carry_no_graph() -> None:
    w = torch.nn.Parameter(torch.ones(2))
    moved, state = fl.update(fl.setup(fl.Adam(), {"w": w}), {"w": w}, {"w": torch.ones(2)})
    assert not moved["w"].requires_grad
    assert not any(x.requires_grad for x in fl.fleaves(state))


# Under torch.func


@each_rule
def test_an_ensemble_trains_under_vmap_as_its_members_alone(rule: Any) -> None:
    members = [{"w": randn(3, seed=s), "b": randn(1, seed=10 + s)} for s in range(3)]
    stacked = {k: torch.stack([m[k] for m in members]) for k in members[0]}
    x = randn(5, 3, seed=20)

    def run(params: dict[str, Tensor]) -> dict[str, Tensor]:
        state = fl.setup(rule, params)
        for _ in range(3):
            grads = fl.gradient(lambda p: ((x @ p["w"] + p["b"]) ** 2).mean(), params)
            params, state = fl.update(state, params, grads)
        return params

    together = torch.func.vmap(run)(stacked)
    for i, m in enumerate(members):
        assert_close({k: v[i] for k, v in together.items()}, run(m), rtol=1e-12, atol=1e-12)


def test_a_learning_rate_can_be_batched() -> None:
    w, g = randn(3), randn(3, seed=1)
    rates = torch.tensor([0.1, 0.2], dtype=torch.float64)
    moved = torch.func.vmap(lambda lr: fl.update(fl.setup(fl.Adam(lr), w), w, g)[0])(rates)
    for lr, x in zip(rates.tolist(), moved, strict=True):
        assert_close(x, fl.update(fl.setup(fl.Adam(lr), w), w, g)[0], rtol=1e-12, atol=1e-12)


def test_torch_func_grad_differentiates_an_update() -> None:
    w, g = randn(3), randn(3, seed=1)
    slope = torch.func.grad(lambda lr: fl.update(fl.setup(fl.Descent(lr), w), w, g)[0].sum())
    assert_close(slope(torch.tensor(0.1).double()), -g.sum(), rtol=1e-12, atol=1e-12)
