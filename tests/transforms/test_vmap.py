"""`vmap` is a loop over members, on trees with constants in them, and composes to any depth."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

import fluxlike as fl
from fluxlike.trees.structure import flatten
from tests.properties.strategies import assert_same_nodes, leaves_of, ties, trees

# torch's own forward mode compiles decompositions with torch.jit.script on first use.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")


@pytest.fixture(autouse=True)
def _double() -> Any:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def close(actual: Any, expected: Any) -> None:
    mine, theirs = (flatten(x)[0] for x in (actual, expected))
    assert len(mine) == len(theirs)
    for a, b in zip(mine, theirs, strict=True):
        a, b = (x.value if isinstance(x, fl.Assigned) else x for x in (a, b))
        if isinstance(b, Tensor):
            assert_close(a, b, rtol=1e-12, atol=1e-12)
        else:
            assert a is b or a == b


def mlp() -> Any:
    return fl.Chain(fl.Dense(3, 4, torch.tanh), fl.Dense(4, 2))


def loss(model: Any, x: Tensor, y: Tensor) -> Tensor:
    return (model(x) - y).square().mean()


# The law


@settings(deadline=None)
@given(trees((torch.float64, torch.complex64, torch.int64, torch.bool)), st.integers(1, 3), st.data())
def test_vmap_is_a_loop(tree: Any, n: int, data: st.DataObject) -> None:
    members = [
        fl.fmap(lambda x, k=k: x.logical_not() if x.dtype == torch.bool else x + k, tree) for k in range(n)
    ]

    def f(tree: Any) -> Any:
        return fl.fmap(lambda x: x.logical_not() if x.dtype == torch.bool else (3 * x).sum() + x, tree)

    stacked = fl.stack(members)
    axes = fl.fmap(lambda x: data.draw(st.integers(-x.ndim, x.ndim - 1)), stacked)
    moved = fl.fmap(lambda x, axis: x.movedim(0, axis), stacked, axes)
    mapped = fl.vmap(f, in_dims=(axes,), out_dims=axes)(moved)
    expected = fl.fmap(lambda x, axis: x.movedim(0, axis), fl.stack(list(map(f, members))), axes)
    assert_same_nodes(mapped, tree)
    assert ties(mapped) == ties(tree)
    for a, b in zip(leaves_of(mapped), leaves_of(expected), strict=True):
        assert torch.equal(a, b) if isinstance(b, Tensor) else a is b


@settings(deadline=None)  # torch loads its decompositions at first use
@given(st.integers(0, 5), st.integers(1, 6), st.sampled_from([0, 1, -1]))
def test_chunks_give_the_same_as_all_at_once(n: int, chunk_size: int, axis: int) -> None:
    x, w = torch.arange(float(2 * n)).reshape(n, 2), torch.ones(2)

    def f(x: Tensor, w: Tensor) -> Any:
        return {"both": x * w, "shared": w + 1, "sum": x.sum(), "name": "f"}

    out_dims = {"both": axis, "shared": None, "sum": 0, "name": None}
    whole = fl.vmap(f, (0, None), out_dims)(x, w)
    chunked = fl.vmap(f, (0, None), out_dims, chunk_size=chunk_size)(x, w)
    assert chunked["both"].shape == whole["both"].shape
    close(chunked, whole)


# What goes through


def test_constants_and_functions_go_through_arguments_and_results() -> None:
    def f(tree: Any, label: str, scale: float) -> Any:
        assert (tree["act"], tree["none"], tree["k"], label) == (torch.tanh, None, 3, "label")
        return {"y": tree["act"](tree["x"]) * scale, "act": tree["act"], "none": None, "k": tree["k"] + 1}

    x = torch.randn(4, 2)
    out = fl.vmap(f)({"x": x, "act": torch.tanh, "none": None, "k": 3}, "label", 2.0)
    assert (out["act"], out["none"], out["k"]) == (torch.tanh, None, 4)
    close(out["y"], 2 * x.tanh())


def test_a_stacked_model_is_called_member_by_member() -> None:
    models, x = [mlp() for _ in range(5)], torch.randn(7, 3)
    out = fl.vmap(lambda m, x: m(x), in_dims=(0, None))(fl.stack(models), x)
    close(out, torch.stack([m(x) for m in models]))


def test_a_model_is_a_function_too_and_its_parameters_are_shared() -> None:
    model, x = mlp(), torch.randn(7, 3)
    close(fl.vmap(model)(x), model(x))


def test_ties_stay_ties_inside_the_function_and_in_its_results() -> None:
    w = torch.randn(3, 2)

    def f(tree: Any, again: Tensor) -> Any:
        assert tree["a"] is tree["b"]
        assert again is tree["a"]
        y = tree["a"] + 1
        return {"a": y, "b": y, "c": y + 0}

    out = fl.vmap(f)({"a": w, "b": w}, w)
    assert out["a"] is out["b"]
    assert out["a"] is not out["c"]


def test_a_result_that_is_the_same_for_all_members_is_expanded() -> None:
    w = torch.randn(2)
    out = fl.vmap(lambda x: (x, w, torch.zeros(3)))(torch.randn(4))
    close(out[1], w.expand(4, 2))
    assert out[2].shape == (4, 3)


def test_a_result_with_no_axis_comes_out_as_it_is() -> None:
    w = torch.randn(2)
    out = fl.vmap(lambda x, w: (x, w, w + 1), in_dims=(0, None), out_dims=(0, None, None))(torch.randn(4), w)
    assert out[1] is w
    close(out[2], w + 1)


def test_a_python_number_that_was_computed_is_the_same_for_all_members() -> None:
    out = fl.vmap(lambda x, scale: (x * scale, scale / 2))(torch.ones(3), 3.0)
    assert out[1] == 1.5


def test_assigned_goes_through_and_carries_the_axis() -> None:
    def f(grads: Any) -> Any:
        assert isinstance(grads[0], fl.Assigned)
        assert grads[0].value.shape == (2,)
        return [fl.Assigned(grads[0].value + 1), fl.Assigned(torch.zeros(3))]

    out = fl.vmap(f)([fl.Assigned(torch.ones(4, 2))])
    close(out[0].value, torch.full((4, 2), 2.0))
    assert out[1].value.shape == (4, 3)
    moved = fl.vmap(f, out_dims=[1, None])([fl.Assigned(torch.ones(4, 2))])
    assert (moved[0].value.shape, moved[1].value.shape) == ((2, 4), (3,))


def test_scalars_of_stacked_trees_are_0d_tensors_inside() -> None:
    states = fl.stack([fl.setup(fl.Momentum(lr), {"w": torch.ones(2)}) for lr in (0.1, 0.2, 0.3)])

    def f(state: Any) -> Any:
        assert state["w"].rule.lr.shape == ()
        return state["w"].rule.lr * 2

    close(fl.vmap(f)(states), torch.tensor([0.2, 0.4, 0.6]))


def test_keyword_arguments_are_shared_by_all_members_as_in_torch() -> None:
    x, w = torch.randn(4, 2), torch.randn(4)
    ours = fl.vmap(lambda x, *, w: x.sum() + w)(x, w=w)
    close(ours, torch.func.vmap(lambda x, *, w: x.sum() + w)(x, w=w))
    assert ours.shape == (4, 4)


def test_no_members_are_mapped_too() -> None:
    for chunk_size in (None, 2):
        out = fl.vmap(lambda x: {"y": x.sum(), "c": 1}, chunk_size=chunk_size)(torch.zeros(0, 3))
        assert out["y"].shape == (0,)


def test_a_function_without_tensors_in_its_result_is_fine() -> None:
    assert fl.vmap(lambda x: {"shape": x.ndim, "none": None})(torch.zeros(3, 2)) == {"shape": 1, "none": None}


def test_the_arguments_are_not_changed() -> None:
    tree = {"x": torch.ones(3), "a": fl.Assigned(torch.ones(3))}
    before = fl.tree.clone(tree)
    fl.vmap(lambda t: fl.fmap(lambda x: x + 1, t))(tree)
    close(tree, before)


# Axes


AXES = {"w": torch.zeros(2, 4, 3), "rest": [torch.zeros(4, 5), torch.zeros(7)], "act": torch.tanh}


@pytest.mark.parametrize(
    "in_dims",
    [
        ({"w": 1, "rest": [0, None], "act": None},),
        ({"w": -2, "rest": [-2, None], "act": torch.tanh},),
        [{"w": 1, "rest": [0, None], "act": 0}],
    ],
)
def test_axes_are_named_by_a_prefix_of_the_tree(in_dims: Any) -> None:
    def f(tree: Any) -> Any:
        assert tree["w"].shape == (2, 3)
        assert [x.shape for x in tree["rest"]] == [(5,), (7,)]
        return tree["w"]

    assert fl.vmap(f, in_dims)(AXES).shape == (4, 2, 3)


def test_one_axis_of_a_prefix_stands_for_all_below() -> None:
    model = fl.stack([mlp(), mlp()])
    x = torch.zeros(2)
    dims = fl.at(fl.fmap(lambda x: 0, model), lambda m: m.layers[0]).set(None)

    def f(model: Any, x: Tensor) -> Any:
        assert model.layers[0].weight.shape == (2, 4, 3)
        assert model.layers[1].weight.shape == (2, 4)
        return x

    fl.vmap(f, in_dims=(dims, 0))(model, x)


def test_the_axis_of_each_result_is_named_by_a_prefix() -> None:
    out = fl.vmap(lambda x: {"a": x, "b": (x, [x, "s"])}, out_dims={"a": 2, "b": (-1, 1)})(
        torch.zeros(5, 3, 4)
    )
    assert out["a"].shape == (3, 4, 5)
    assert out["b"][0].shape == (3, 4, 5)
    assert out["b"][1][0].shape == (3, 5, 4)
    assert out["b"][1][1] == "s"


def test_tied_results_may_have_different_axes() -> None:
    out = fl.vmap(lambda x: (x, x), out_dims=(0, 1))(torch.zeros(5, 3))
    assert (out[0].shape, out[1].shape) == ((5, 3), (3, 5))


# Errors


def identity(*args: Any) -> Any:
    return args[0]


W = torch.zeros(4, 3)
ASSIGNED = fl.Assigned(W)


@pytest.mark.parametrize(
    ("in_dims", "args", "message"),
    [
        (0, (), "found no tensor to map over"),
        (0, (3.0, "x"), "found no tensor to map over"),
        (None, (W,), "in_dims gives None for every tensor"),
        ((None, None), (W, {"w": W}), "in_dims gives None for every tensor"),
        (0, (W, {"w": torch.zeros(5)}),
         r"the whole of argument 0 has 4 members on axis 0, and \['w'\] of argument 1 has 5 on axis 0; give"),
        ((1, 0), (W, torch.zeros(4)), r"0 has 3 members on axis 1, and the whole of argument 1 has 4"),
        (0, ({"s": torch.tensor(1.0), "w": W},), r"\['s'\] of argument 0 is a 0-d tensor, which has no axis"),
        (2, (W,), r"of shape \(4, 3\), which has no axis 2"),
        ((0,), (W, W), "in_dims has 1 entries for 2 arguments"),
        ("0", (W,), "in_dims='0': write an axis or None for all arguments"),
        (True, (W,), "in_dims=True"),
        (W, (W,), r"in_dims is a Tensor: .* write vmap\(f\)\(model, x\)"),
        (0, ([{"w": W, "b": W[0]}] * 3,), r"\['b'\] .* has 3 .*a list of 3 trees .* stack them first: flux"),
        ((None, 0), (W, ({"w": W, "b": W[0]},) * 3), r"argument 1 is a tuple of 3 trees .* stack"),
        (0, ([{"w": W}, {"w": W.T}],), "has 3 on axis 0; give None"),
        (0, ([{"w": W}, {"w": W + 1}], W.T), "has 3 on axis 0; give None"),
        ({"w": 0}, ({"w": W},), r"in_dims={'w': 0}: .*a tuple with one, or a prefix"),
        (({"v": 0},), ({"w": W},),
         r"in_dims\[0\] is no prefix of argument 0: argument 0 has \['w'\], in_dims\[0\] has not"),
        (({"w": 0, "v": 0},), ({"w": W},), r"in_dims\[0\] has \['v'\], argument 0 has not"),
        (([0],), ((W,),), r"in_dims\[0\] is a list at the root of argument 0; .* or a tuple with one"),
        (({"w": [0]},), ({"w": W},), r"in_dims\[0\] is a list at \['w'\] of argument 0; write an axis"),
        (({"w": ASSIGNED},), ({"w": ASSIGNED},), r"is Assigned.* at \['w'\] of argument 0; write an axis"),
        (({"w": torch.tanh},), ({"w": W},), r"is <built-in method tanh.*> at \['w'\] of argument 0; write"),
        (({"w": 0, "f": torch.sin},), ({"w": W, "f": torch.cos},), r"at \['f'\] of argument 0; write"),
        (({"a": 0, "b": None},), ({"a": W, "b": W},), r"\['a'\] of argument 0 and \['b'\] of argument 0 are"),
        (0, (W, torch.eye(4).to_sparse()), "of torch.sparse_coo, which can't be mapped"),
    ],
)  # fmt: skip
def test_arguments_that_cannot_be_mapped_are_an_error_that_names_the_place(
    in_dims: Any, args: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fl.vmap(identity, in_dims)(*args)


@pytest.mark.parametrize(
    ("f", "out_dims", "message"),
    [
        (lambda x: x, None, "the whole of what the function returned differs from member to member"),
        (lambda x: {"a": [x]}, {"a": [None]}, r"\['a'\]\[0\] of what the function returned differs"),
        (lambda x: x.sum(), 1, r"is of shape \(\), which has no place 1 for the axis; write 0 to 0"),
        (
            lambda x: {"a": x},
            {"b": 0},
            r"out_dims is no prefix of what the function returned: .* has \['a'\]",
        ),
        (lambda x: (x, x), [0, 0], "out_dims is a list at the root of what the function returned"),
        (lambda x: x, "0", "out_dims is '0' at the root"),
        (lambda x: x, (0,), "out_dims is a tuple at the root"),
    ],
)
def test_results_that_do_not_fit_out_dims_are_an_error(f: Any, out_dims: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fl.vmap(f, out_dims=out_dims)(W)


def test_options_are_checked_before_the_call() -> None:
    with pytest.raises(TypeError, match=r"found a Tensor; write vmap\(f\)\(x\), not vmap\(f\(x\)\)"):
        fl.vmap(W)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="randomness='all': write 'error', 'different' or 'same'"):
        fl.vmap(identity, randomness="all")  # type: ignore[arg-type]
    for chunk_size in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match=r"chunk_size=.*whole number of at least 1"):
            fl.vmap(identity, chunk_size=chunk_size)  # type: ignore[arg-type]


def test_one_model_that_was_mapped_as_a_stack_is_told_of_in_dims():
    call, x = lambda m, x: m(x), torch.ones(4, 4)
    for model in (fl.Dense(4, 4), fl.Chain(fl.Dense(4, 4))):
        with pytest.raises((IndexError, fl.LayerError)) as error:
            fl.vmap(call)(model, x)
        assert error.value.__notes__[-1].endswith("no stack of several, write in_dims=(None, 0)")
        assert fl.vmap(call, in_dims=(None, 0))(model, x).shape == (4, 4)
    with pytest.raises(ValueError, match=r"for what all members share: in_dims=\(None, 0\)$"):
        fl.vmap(call)(fl.Dense(4, 8), torch.ones(5, 4))


@pytest.mark.parametrize(
    "args", [(torch.ones(2), torch.ones(2)), (fl.Dense(2, 2),), (fl.Key(0).split(2), torch.ones(2))]
)
def test_an_error_of_the_function_without_a_model_to_share_is_left_as_it_is(args):
    with pytest.raises(IndexError) as error:
        fl.vmap(lambda *args: ()[1])(*args)
    assert not hasattr(error.value, "__notes__")


def test_an_unregistered_object_with_tensors_is_an_error_in_arguments_and_results() -> None:
    class Unknown:
        def __init__(self, x: Tensor) -> None:
            self.x = x

    with pytest.raises(TypeError, match="Unknown, which is not registered"):
        fl.vmap(identity)([Unknown(W)])
    with pytest.raises(TypeError, match="Unknown, which is not registered"):
        fl.vmap(Unknown)(W)


# With gradients, to any depth


def data(*shape: int) -> tuple[Tensor, Tensor]:
    return torch.randn(*shape, 5, 3), torch.randn(*shape, 5, 2)


def test_vmap_of_gradient_is_a_loop_over_models_and_data() -> None:
    models = [mlp() for _ in range(3)]
    x, y = data(3)
    grads = fl.vmap(lambda m, x, y: fl.gradient(loss, m, x, y))(fl.stack(models), x, y)
    close(grads, fl.stack([fl.gradient(loss, m, *xy) for m, *xy in zip(models, x, y, strict=True)]))


def test_a_parameter_that_is_not_reached_has_none_under_vmap() -> None:
    tree = {"w": torch.randn(3, 2), "unused": torch.randn(3, 2), "act": torch.tanh}
    grads = fl.vmap(lambda t: fl.gradient(lambda t: t["act"](t["w"]).sum(), t))(tree)
    assert grads["unused"] is None
    assert grads["act"] is None


def test_the_gradient_of_tied_parameters_is_at_the_first_place_under_vmap() -> None:
    w = torch.randn(3, 2)
    f = lambda t: (3 * t["x"]).sum() + (13 * t["z"]).sum()  # noqa: E731
    grads = fl.vmap(lambda t: fl.gradient(f, t))({"x": w, "z": w})
    close(grads["x"], torch.full((3, 2), 16.0))
    assert grads["z"] is None


def test_gradient_of_vmap_is_the_gradient_of_the_loop() -> None:
    models = [mlp() for _ in range(3)]
    x, y = data()

    def total(models: Any) -> Tensor:
        return fl.vmap(loss, in_dims=(0, None, None))(models, x, y).sum()

    grads = fl.gradient(total, fl.stack(models))
    close(grads, fl.stack([fl.gradient(loss, m, x, y) for m in models]))


def test_vmap_of_vmap_of_gradient_is_two_loops() -> None:
    models, (x, y) = [mlp() for _ in range(3)], data(2)
    over_data = fl.vmap(lambda m, x, y: fl.gradient(loss, m, x, y), in_dims=(None, 0, 0))
    grads = fl.vmap(over_data, in_dims=(0, None, None), out_dims=1)(fl.stack(models), x, y)
    expected = [fl.stack([fl.gradient(loss, m, x[j], y[j]) for m in models]) for j in range(2)]
    close(grads, fl.stack(expected))


def test_vmap_of_gradient_of_vmap_of_gradient() -> None:
    """A gradient penalty of every member of an ensemble, by every example."""
    models, (x, _) = [mlp() for _ in range(3)], data()

    def penalty(model: Any, over: Callable[..., Any]) -> Tensor:
        slopes = over(lambda row: fl.gradient(lambda row: model(row).sum(), row))(x)
        return (slopes.norm(dim=1) - 1).square().mean()

    def by_loop(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda rows: torch.stack([f(row) for row in rows])

    grads = fl.vmap(lambda m: fl.gradient(penalty, m, fl.vmap))(fl.stack(models))
    close(grads, fl.stack([fl.gradient(penalty, m, by_loop) for m in models]))


def test_gradient_of_vmap_of_gradient_is_torchs_second_derivative() -> None:
    x = torch.randn(4)
    cubes = lambda x: fl.vmap(lambda v: fl.gradient(lambda v: v**3, v))(x).sum()  # noqa: E731
    close(fl.gradient(cubes, x), 6 * x)


@pytest.mark.parametrize("depth", [3, 4])
def test_many_nested_vmaps_are_one_map(depth: int) -> None:
    x = torch.randn(*[2] * depth, 3)
    f: Callable[..., Any] = lambda v: {"y": fl.gradient(lambda v: v.pow(3).sum(), v), "k": "c"}  # noqa: E731
    for _ in range(depth):
        f = fl.vmap(f)
    out = f(x)
    close(out["y"], 3 * x**2)
    assert out["k"] == "c"


def test_inside_torchs_vmap_and_around_it() -> None:
    x = torch.randn(2, 3, 4)
    close(torch.func.vmap(fl.vmap(lambda v: {"y": v.sum()}))(x)["y"], x.sum(-1))
    close(fl.vmap(torch.func.vmap(lambda v: v.sum()))(x), x.sum(-1))


def test_inside_torchs_grad_and_jvp() -> None:
    x, t = torch.randn(4), torch.randn(4)
    f = lambda x: fl.vmap(lambda v: {"y": v.sin(), "f": torch.sin})(x)["y"]  # noqa: E731
    close(torch.func.grad(lambda x: f(x).sum())(x), x.cos())
    close(torch.func.jvp(f, (x,), (t,)), (x.sin(), t * x.cos()))
    close(torch.func.jacrev(f)(x), torch.diag(x.cos()))
    close(torch.func.jacfwd(f)(x), torch.diag(x.cos()))
    close(torch.func.grad(lambda x: torch.func.grad(lambda x: f(x).sum())(x).sum())(x), -x.sin())


def test_a_result_without_an_axis_is_of_the_level_outside() -> None:
    def outer(x: Tensor) -> Any:
        return fl.vmap(lambda v: (v, x.sum()), out_dims=(0, None))(torch.zeros(2))[1]

    x = torch.randn(3, 4)
    close(fl.vmap(outer)(x), x.sum(1))
    close(fl.gradient(outer, x), torch.ones(3, 4))


# Scope


def test_vmap_goes_on_in_the_mode_around_it() -> None:
    seen = []

    def f(x: Tensor) -> Tensor:
        seen.append(fl.training())
        return x.sum()

    fl.vmap(f)(W)
    with fl.mode("train"):
        fl.vmap(f)(W)
    fl.gradient(lambda m: m.weight.sum() + fl.vmap(f)(W).sum(), fl.Dense(2, 2))
    fl.vmap(lambda m: fl.gradient(lambda m: m.weight.sum() + fl.vmap(f)(W).sum(), m))(
        fl.stack([fl.Dense(2, 2)])
    )
    assert seen == [False, True, True, True]


def with_norm() -> Any:
    return fl.Chain(fl.Dense(3, 4, torch.tanh), fl.BatchNorm(4), fl.Dense(4, 2))


def test_every_member_assigns_its_own_buffers() -> None:
    models, (x, y) = [with_norm() for _ in range(3)], data(3)
    grads = fl.vmap(lambda m, x, y: fl.gradient(loss, m, x, y))(fl.stack(models), x, y)
    expected = [fl.gradient(loss, m, *xy) for m, *xy in zip(models, x, y, strict=True)]
    assert isinstance(grads.layers[1].running_mean, fl.Assigned)
    close(grads, fl.stack(expected))
    updates = fl.vmap(lambda m, x: fl.withupdates(lambda m: m(x), m)[1])(fl.stack(models), x)
    close(updates.layers[1].running_var.value, grads.layers[1].running_var.value)
    moved = fl.vmap(fl.apply_updates)(fl.stack(models), updates)
    close(moved.layers[1].running_mean, grads.layers[1].running_mean.value)


def test_an_assignment_for_each_example_is_refused_by_update() -> None:
    model, (x, _) = with_norm(), data(4)
    updates = fl.vmap(lambda x: fl.withupdates(lambda m: m(x), model)[1])(x)
    with pytest.raises(ValueError, match=r"running_mean is assigned a tensor of shape \(4, 4\)"):
        fl.apply_updates(model, updates)


def test_an_assignment_in_a_vmap_inside_the_gradient_is_refused() -> None:
    model, (x, _) = with_norm(), data(4)
    with pytest.raises(fl.LayerError, match="a value for each example of a vmap"):
        fl.gradient(lambda m: fl.vmap(m)(x).sum(), model)


# Populations of optimisers

RATES = (0.1, 0.03, 0.01)
RULES: dict[str, Callable[[float], Any]] = {
    "Descent": fl.Descent,
    "Momentum": lambda lr: fl.Momentum(lr, momentum=1 - lr),
    "Nesterov": fl.Nesterov,
    "Adam": lambda lr: fl.Adam(lr, betas=(0.9 - lr, 0.999), weight_decay=lr),
    "AdamW": lambda lr: fl.AdamW(lr, weight_decay=lr),
    "AdamW, uncoupled": lambda lr: fl.AdamW(lr, weight_decay=lr, couple=False),
    "AMSGrad": fl.AMSGrad,
    "NAdam": lambda lr: fl.NAdam(lr, momentum_decay=lr),
    "RAdam": lambda lr: fl.RAdam(lr, betas=(0.9, 0.9 + lr / 2)),
    "AdaMax": fl.AdaMax,
    "OAdam": fl.OAdam,
    "AdaBelief": fl.AdaBelief,
    "Lamb": fl.Lamb,
    "AdaGrad": lambda lr: fl.AdaGrad(lr, lr_decay=lr, initial_accumulator_value=lr),
    "AdaDelta": fl.AdaDelta,
    "RMSProp": fl.RMSProp,
    "RMSProp with momentum": lambda lr: fl.RMSProp(lr, momentum=0.9, centered=True),
    "Rprop": lambda lr: fl.Rprop(lr, etas=(0.5 - lr, 1.2)),
    "Lion": fl.Lion,
    "Adafactor": fl.Adafactor,
    "ScheduleFree": lambda lr: fl.ScheduleFree(lr, r=lr, warmup_steps=2),
    "clipped together": lambda lr: fl.OptimiserChain(fl.ClipGlobalNorm(lr), fl.Adam(lr)),
    "clipped one by one": lambda lr: fl.OptimiserChain(fl.ClipNorm(lr), fl.ClipGrad(lr), fl.Descent(lr)),
    "decayed": lambda lr: fl.OptimiserChain(fl.SignDecay(lr), fl.WeightDecay(lr), fl.Momentum(lr)),
    "clipped and scheduled": lambda lr: fl.OptimiserChain(
        fl.ClipGlobalNorm(lr), fl.Scheduled(fl.AdamW(weight_decay=lr), lr=fl.schedules.Cosine(0.1, 0.01, 5))
    ),
    "accumulated": lambda lr: fl.OptimiserChain(fl.AccumGrad(2), fl.Adam(lr)),
    "averaged": lambda lr: fl.EMA(fl.Adam(lr), decay=1 - lr),
    "Lookahead": lambda lr: fl.Lookahead(fl.Momentum(lr), k=2, alpha=lr),
    "MixedPrecision": lambda lr: fl.MixedPrecision(torch.float64, fl.Adam(lr)),
    "ApplyIfFinite": lambda lr: fl.ApplyIfFinite(fl.Adam(lr)),
}  # fmt: skip


def train_step(model: Any, state: Any, x: Tensor, y: Tensor) -> Any:
    return fl.update(state, model, fl.gradient(loss, model, x, y))


@pytest.mark.parametrize("name", RULES)
def test_a_population_with_many_learning_rates_trains_as_a_loop_does(name: str) -> None:
    models = [with_norm() for _ in RATES]
    states = [fl.setup(RULES[name](lr), m) for lr, m in zip(RATES, models, strict=True)]
    stacked = fl.stack(models), fl.stack(states)
    for _ in range(4):
        x, y = data(len(RATES))
        stacked = fl.vmap(train_step)(*stacked, x, y)
        alone = [train_step(*each) for each in zip(models, states, x, y, strict=True)]
        models, states = map(list, zip(*alone, strict=True))
    for member, model in zip(fl.unstack(stacked[0]), models, strict=True):
        close(member, model)
    for member, state in zip(fl.unstack(stacked[1]), states, strict=True):
        close(member, state)
        assert flatten(member)[1] == flatten(state)[1]


def test_a_population_in_chunks_trains_as_all_at_once() -> None:
    models = fl.stack([with_norm() for _ in range(5)])
    states = fl.vmap(lambda m: fl.setup(fl.Adam(0.1), m))(models)
    x, y = data(5)
    whole = fl.vmap(train_step)(models, states, x, y)
    close(fl.vmap(train_step, chunk_size=2)(models, states, x, y), whole)


def test_a_user_rule_and_learning_rates_by_path_work_in_a_population() -> None:
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Heavy:
        lr: float
        mass: float

        def init(self, param: Tensor) -> Tensor:
            return torch.zeros_like(param)

        def apply(self, state: Tensor, param: Tensor, grad: Tensor) -> Any:
            state = self.mass * state + grad
            return state, self.lr * state

    models = [mlp() for _ in RATES]
    rules = [lambda path, lr=lr: Heavy(lr, 0.5) if "layers[0]" in path else fl.Adam(lr) for lr in RATES]
    states = [fl.setup(rule, m) for rule, m in zip(rules, models, strict=True)]
    x, y = data(len(RATES))
    moved, after = fl.vmap(train_step)(fl.stack(models), fl.stack(states), x, y)
    alone = [train_step(*each) for each in zip(models, states, x, y, strict=True)]
    close(moved, fl.stack([m for m, _ in alone]))
    close(after, fl.stack([s for _, s in alone]))


def test_the_other_functions_of_optimisers_go_over_a_population() -> None:
    models = [mlp() for _ in RATES]
    states = [fl.setup(fl.EMA(fl.Adam(lr)), m) for lr, m in zip(RATES, models, strict=True)]
    M, S = fl.stack(models), fl.stack(states)
    close(fl.vmap(fl.averaged)(S, M), M)
    rates = torch.tensor(RATES) / 2
    adjusted = fl.vmap(fl.adjust)(S, rates)
    assert [s.layers[0].bias.rule.rule.lr for s in fl.unstack(adjusted)] == rates.tolist()
    x, y = data(len(RATES))
    grads = fl.vmap(lambda m, x, y: fl.gradient(loss, m, x, y))(M, x, y)
    steps, _ = fl.vmap(fl.steps)(S, M, grads)
    moved, _ = fl.vmap(fl.update)(S, M, grads)
    close(fl.tree.sub(M, steps), moved)


def test_a_stacked_state_outside_of_vmap_is_an_error_that_names_vmap() -> None:
    model = {"w": torch.ones(3)}
    states = fl.stack([fl.setup(fl.OptimiserChain(fl.ClipNorm(1.0), fl.Descent(lr)), model) for lr in RATES])
    stacked = fl.stack([model] * 3)
    with pytest.raises(
        ValueError, match=r"ClipNorm's max_norm at \['w'\] is of shape \(3,\).*vmap\(fluxlike.update\)"
    ):
        fl.update(states, stacked, stacked)
    with pytest.raises(TypeError, match=r"lr is a tensor of shape \(3,\).*go over them with fluxlike.vmap"):
        fl.adjust(states, torch.ones(3))


def test_learning_rates_are_learnt_through_a_population() -> None:
    """The gradient of every member's loss after a step, by its own learning rate."""
    models, (x, y) = [mlp() for _ in RATES], data()
    rates = torch.tensor(RATES)

    def after(lr: Tensor, model: Any) -> Tensor:
        moved, _ = train_step(model, fl.setup(fl.Momentum(lr), model), x, y)
        return loss(moved, x, y)

    by_vmap = fl.vmap(lambda lr, m: fl.gradient(after, lr, m))(rates, fl.stack(models))
    close(by_vmap, torch.stack([fl.gradient(after, lr, m) for lr, m in zip(rates, models, strict=True)]))


# Draws without a key


def noisy(x: Tensor) -> Tensor:
    return x + torch.rand(())


def test_draws_without_a_key_are_torchs() -> None:
    x = torch.zeros(4)
    with pytest.raises(RuntimeError, match="randomness"):
        fl.vmap(noisy)(x)
    assert len(fl.vmap(noisy, randomness="same")(x).unique()) == 1
    different = fl.vmap(noisy, randomness="different")(x)
    assert len(different.unique()) == 4
    torch.manual_seed(1)
    ours = fl.vmap(noisy, randomness="different")(x)
    torch.manual_seed(1)
    close(ours, torch.func.vmap(noisy, randomness="different")(x))


def test_the_same_draw_is_the_same_in_every_chunk() -> None:
    assert len(fl.vmap(noisy, randomness="same", chunk_size=2)(torch.zeros(5)).unique()) == 1


def test_dropout_drops_for_each_member_of_an_ensemble() -> None:
    drops = [fl.Dropout(0.5)] * 3
    with fl.mode("train"):
        f = lambda x: drops[0](x)  # noqa: E731
        out = fl.vmap(f, randomness="different")(torch.ones(3, 64))
    assert len({tuple(row.tolist()) for row in out}) == 3


# Draws from a key


def draw(_: Tensor) -> Tensor:
    return torch.stack([fl.random.uniform((2,)), fl.random.normal((2,))])


def alone(key: fl.Key, f: Callable[..., Any], *args: Any) -> Any:
    with fl.seeded(key):
        return f(*args)


KEY = fl.Key(3)


@pytest.mark.parametrize("chunk_size", [None, 1, 2, 5])
def test_member_i_draws_from_the_key_folded_by_i(chunk_size: Any) -> None:
    x = torch.zeros(5)
    drawn = alone(KEY, fl.vmap(draw, randomness="different", chunk_size=chunk_size), x)
    close(drawn, torch.stack([alone(KEY.fold_in(i), draw, x[i]) for i in range(5)]))
    assert len(drawn[:, 0].unique()) == 10


def test_nested_vmaps_fold_the_key_twice() -> None:
    x = torch.zeros(2, 3)
    inner = fl.vmap(draw, randomness="different")
    drawn = alone(KEY, fl.vmap(inner, randomness="different", chunk_size=1), x)
    folded = [[KEY.fold_in(i).fold_in(j) for j in range(3)] for i in range(2)]
    close(drawn, torch.stack([torch.stack([alone(k, draw, x[0, 0]) for k in row]) for row in folded]))


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_all_members_draw_the_same_where_told_so(chunk_size: Any) -> None:
    drawn = alone(KEY, fl.vmap(draw, randomness="same", chunk_size=chunk_size), torch.zeros(5))
    close(drawn, alone(KEY, draw, torch.zeros(())).expand(5, 2, 2))


def test_a_draw_is_an_error_that_says_what_to_write() -> None:
    for f in (draw, noisy):
        with pytest.raises(RuntimeError, match=r"randomness='different'.*'same'.*give each member its key"):
            alone(KEY, fl.vmap(f), torch.zeros(5))
    with pytest.raises(RuntimeError, match="randomness='different'"):
        alone(KEY, fl.vmap(fl.vmap(draw, randomness="different")), torch.zeros(2, 3))
    close(alone(KEY, fl.vmap(lambda x: 2 * x), torch.ones(5)), torch.full((5,), 2.0))
    assert alone(KEY, draw, torch.zeros(())).shape == (2, 2)


def test_each_member_may_have_a_key_as_its_argument() -> None:
    keys, x = KEY.split(4), torch.zeros(4)
    close(
        fl.vmap(lambda key, x: alone(key, draw, x))(keys, x),
        torch.stack([alone(key, draw, x[0]) for key in keys]),
    )
    inside = alone(fl.Key(9), fl.vmap(lambda key, x: alone(key, draw, x)), keys, x)
    close(inside, fl.vmap(lambda key, x: alone(key, draw, x))(keys, x))


def test_vmaps_in_a_row_draw_anew_and_chunks_count_once() -> None:
    def twice(chunk_size: Any) -> Any:
        mapped = fl.vmap(draw, randomness="different", chunk_size=chunk_size)
        return mapped(torch.zeros(3)), mapped(torch.zeros(3)), draw(torch.zeros(()))

    whole, chunked = alone(KEY, twice, None), alone(KEY, twice, 1)
    close(chunked, whole)
    assert not torch.equal(whole[0], whole[1])


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_torchs_own_draws_are_a_function_of_the_key(chunk_size: Any) -> None:
    state = torch.get_rng_state()
    for randomness, distinct in (("different", 5), ("same", 1)):
        mapped = fl.vmap(noisy, randomness=randomness, chunk_size=chunk_size)  # type: ignore[arg-type]
        drawn = alone(KEY, mapped, torch.zeros(5))
        assert len(drawn.unique()) == distinct
        close(alone(KEY, fl.vmap(noisy, randomness=randomness), torch.zeros(5)), drawn)  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), state)


def test_a_population_with_dropout_trains_as_each_member_alone() -> None:
    models = [fl.Chain(fl.Dense(3, 8, torch.tanh), fl.Dropout(0.5), fl.Dense(8, 2)) for _ in RATES]
    x, y = data(len(RATES))
    f = lambda m, x, y: fl.gradient(loss, m, x, y)  # noqa: E731
    together = alone(KEY, fl.vmap(f, randomness="different"), fl.stack(models), x, y)
    members = zip(models, x, y, strict=True)
    close(together, fl.stack([alone(KEY.fold_in(i), f, *member) for i, member in enumerate(members)]))


@pytest.mark.parametrize(
    "draw", [fl.random.uniform, fl.random.normal, lambda shape: fl.random.bernoulli(shape, 0.5)]
)
def test_draws_without_a_key_may_differ_between_members(draw):
    x = fl.vmap(lambda i: draw((50,)), randomness="different")(torch.arange(3)).double()
    assert not torch.equal(x[0], x[1])
    assert x.shape == (3, 50)


def test_layers_can_be_built_in_a_vmap_without_a_key():
    models = fl.vmap(lambda i: fl.Dense(3, 2), randomness="different")(torch.arange(4))
    assert models.weight.shape == (4, 2, 3)
    assert not torch.equal(models.weight[0], models.weight[1])


def test_a_comparison_in_a_mapped_function_under_a_key_is_no_draw():
    def f(x):
        with fl.seeded(fl.Key(0)):
            return x == 0

    assert fl.vmap(f)(torch.tensor([0, 1])).tolist() == [True, False]


# What one member's value would decide


@pytest.mark.parametrize(
    ("f", "instead"),
    [
        (lambda row: row if row.sum() > 0 else -row, r"torch\.where or fluxlike\.cond for a branch"),
        (lambda row: torch.tensor([row[0], row[1]]), r"torch\.stack\(\[a, b\]\) for torch\.tensor"),
        (lambda row: row * float(row[0]), "one member after another"),
        (lambda row: [row for _ in range(int(row[0]))], r"fluxlike\.scan for a loop"),
        (lambda row: row[row > 0], r"torch\.where\(mask, x, 0\) instead of x\[mask\]"),
        (lambda row: torch.nonzero(row), "keep the shape"),
    ],
)
def test_a_line_that_asks_for_a_value_is_shown_with_what_to_write(f: Any, instead: str) -> None:
    line = r"test_vmap\.py:\d+, in <lambda>:\n    .*lambda row: "
    for mapped, x in (
        (f, torch.ones(3, 2)),
        (fl.vmap(f), torch.ones(2, 3, 2)),
        (fl.Chain(f), torch.ones(3, 2)),
    ):
        with pytest.raises(RuntimeError, match="vmap computes all members at once") as info:
            fl.vmap(mapped)(x)
        said = str(info.value)
        assert re.search(line, said)
        assert re.search(instead, said)
        assert said.count("all members at once") == 1


def test_a_line_of_a_loss_of_one_example_is_shown_too() -> None:
    def loss(model: Any, x: Tensor) -> Tensor:
        return (model["w"] * x).sum() if x.sum() > 0 else model["w"]

    with pytest.raises(RuntimeError, match=r"if x\.sum\(\) > 0 else .*\n.*torch\.where or fluxlike\.cond"):
        fl.per_example_gradient(loss, {"w": torch.ones(())}, torch.ones(3, 2))
