"""`stack` and `unstack`: one tree of stacked tensors, and back without a difference."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fluxlike as fl
from fluxlike.trees.structure import flatten
from tests.properties.strategies import assert_same_nodes, leaves_of, same_content, ties, trees


@fl.functor(scalars=("rate",))
class Tempered:
    def __init__(self, weight: Any, rate: Any = 0.5, name: Any = "t") -> None:
        self.weight, self.rate, self.name = weight, rate, name


@fl.functor(children=("weight",))
class Strided:
    def __init__(self, weight: Any, stride: Any) -> None:
        self.weight, self.stride = weight, stride


def other_values(tree: Any, k: int) -> Any:
    """The same tree with other numbers in its tensors."""
    return fl.fmap(
        lambda x: x.logical_xor(torch.tensor(k % 2 == 1)) if x.dtype == torch.bool else x + k, tree
    )


# Laws


@given(trees(), st.integers(1, 4))
def test_unstack_undoes_stack(tree: Any, n: int) -> None:
    members = [other_values(tree, k) for k in range(n)]
    back = fl.unstack(fl.stack(members))
    assert len(back) == n
    for member, again in zip(members, back, strict=True):
        assert same_content(again, member)
        assert ties(again) == ties(member)


@given(trees(), st.integers(1, 3))
def test_stacking_adds_an_axis_and_keeps_structure_ties_and_constants(tree: Any, n: int) -> None:
    members = [other_values(tree, k) for k in range(n)]
    stacked = fl.stack(members)
    assert_same_nodes(stacked, tree)
    assert ties(stacked) == ties(tree)
    for x, *others in zip(leaves_of(stacked), *map(leaves_of, members), strict=True):
        if isinstance(x, Tensor):
            assert all(torch.equal(x[k], other) for k, other in enumerate(others))
        else:
            assert x is others[0]


@given(trees(), st.integers(1, 3))
def test_stack_undoes_unstack(tree: Any, n: int) -> None:
    stacked = fl.stack([other_values(tree, k) for k in range(n)])
    assert same_content(fl.stack(fl.unstack(stacked)), stacked)


@given(trees())
def test_stack_changes_none_of_its_trees(tree: Any) -> None:
    before = fl.tree.clone(tree)
    stacked = fl.stack([tree, other_values(tree, 1)])
    fl.unstack(stacked)
    assert same_content(tree, before)


RULES = [
    fl.Adam(0.1),
    fl.Momentum(0.1),
    fl.OptimiserChain(fl.ClipGlobalNorm(0.3), fl.WeightDecay(0.2), fl.AdamW(0.1)),
    fl.EMA(fl.Scheduled(fl.NAdam(), lr=fl.schedules.Exp(0.1, 0.5)), decay=0.7),
    fl.ApplyIfFinite(fl.ScheduleFree(0.1, r=0.5)),
    fl.OptimiserChain(fl.AccumGrad(2), fl.Adafactor(0.1)),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda r: type(r).__name__)
def test_the_state_of_an_optimiser_comes_back_as_it_was(rule: Any) -> None:
    models = [fl.Chain(fl.Dense(3, 2, fl.relu), fl.BatchNorm(2)) for _ in range(3)]
    states = [fl.freeze(fl.setup(rule, m), lambda s: s.layers[0].bias) for m in models]
    moved = []
    for m, s in zip(models, states, strict=True):
        grads = fl.gradient(lambda m: m(torch.randn(4, 3)).square().sum(), m)
        moved.append(fl.update(s, m, grads)[1])
    for state, again in zip(moved, fl.unstack(fl.stack(moved)), strict=True):
        assert fl.tree.allclose(state, again, rtol=0, atol=0)
        assert flatten(state)[1] == flatten(again)[1]
        assert again.layers[0].weight.rule == state.layers[0].weight.rule
        assert again.layers[0].bias.frozen
        assert not again.layers[0].weight.frozen
        assert tensor_ties(again) == tensor_ties(state)


def tensor_ties(tree: Any) -> list[int]:
    found = [x for x in flatten(tree)[0] if isinstance(x, Tensor)]
    return [next(i for i, y in enumerate(found) if y is x) for x in found]


# Scalars


def test_scalars_are_stacked_and_other_floats_are_not() -> None:
    stacked = fl.stack([Tempered({"x": torch.ones(2), "eps": 0.1}, rate) for rate in (0.5, 0.25)])
    assert torch.equal(stacked.rate, torch.tensor([0.5, 0.25], dtype=torch.float64))
    assert stacked.weight["eps"] == 0.1
    assert [member.rate for member in fl.unstack(stacked)] == [0.5, 0.25]


def test_equal_scalars_are_stacked_too_and_every_bit_of_them_comes_back() -> None:
    values = [float("nan"), -0.0, 1e-310, float("inf"), 1 / 3]
    stacked = fl.stack([Tempered(torch.ones(1), (0.5, v)) for v in values])
    assert stacked.rate[0].shape == (5,)
    assert [repr(member.rate) for member in fl.unstack(stacked)] == [repr((0.5, v)) for v in values]


def test_a_whole_number_in_the_place_of_a_scalar_is_a_constant() -> None:
    stacked = fl.stack([Tempered(torch.ones(1), rate) for rate in (2, 2)])
    assert type(stacked.rate) is int
    with pytest.raises(
        ValueError, match=r"at \.rate, tree 0 has the int 1 and tree 1 has the float 0\.1; write a"
    ):
        fl.stack([Tempered(torch.ones(1), rate) for rate in (1, 0.1)])


def test_scalars_that_were_tensors_stay_tensors() -> None:
    rates = [torch.tensor(0.5), torch.tensor(0.25)]
    members = fl.unstack(fl.stack([Tempered(torch.ones(1), rate) for rate in rates]))
    assert all(isinstance(m.rate, Tensor) and m.rate.dtype == torch.float32 for m in members)


def test_trees_that_were_stacked_twice_come_back_in_two_steps() -> None:
    members = [[Tempered(torch.ones(2) * k, 0.1 * k + j) for k in range(3)] for j in range(2)]
    stacked = fl.stack([fl.stack(row) for row in members])
    assert stacked.rate.shape == (2, 3)
    back = [fl.unstack(row) for row in fl.unstack(stacked)]
    assert [[m.rate for m in row] for row in back] == [[m.rate for m in row] for row in members]


@pytest.mark.filterwarnings("ignore:the function of the path gave all 2 parameters the rule")
def test_the_hyperparameters_of_equal_rules_are_one_tensor() -> None:
    """Parameters of equal rules move together, under a global norm too, also where files made the rules."""
    model = {"a": torch.ones(2), "b": torch.ones(3)}
    by_path = lambda path: fl.OptimiserChain(fl.ClipGlobalNorm(float("1.5")), fl.Adam(float("0.1")))  # noqa: E731
    states = fl.stack([fl.setup(by_path, model), fl.setup(by_path, model)])
    one, other = states["a"].rule, states["b"].rule
    assert one.rules[0].max_norm is other.rules[0].max_norm
    assert one.rules[1].lr is other.rules[1].lr
    assert one == other


def test_scalars_of_another_name_or_value_are_not_tied() -> None:
    stacked = fl.stack(
        [{"a": fl.Momentum(0.5, 0.5), "b": fl.Momentum(0.1, 0.5), "c": Tempered(None, 0.5)}] * 2
    )
    assert stacked["a"].lr is not stacked["a"].momentum
    assert stacked["a"].lr is not stacked["b"].lr
    assert stacked["a"].lr is not stacked["c"].rate
    assert stacked["a"].momentum is stacked["b"].momentum


def test_scalars_are_0d_tensors_where_a_transform_has_no_values() -> None:
    stacked = fl.stack([Tempered(torch.ones(1), rate) for rate in (0.5, 0.25)])

    def total(tree: Any) -> Tensor:
        first, second = fl.unstack(tree)
        assert isinstance(first.rate, Tensor)
        return first.rate * first.weight.sum() + second.rate

    grads = fl.gradient(total, stacked)
    assert torch.equal(grads.rate, torch.tensor([1.0, 1.0], dtype=torch.float64))
    doubled = torch.func.vmap(lambda x: fl.unstack(Tempered(x, 2 * x))[1].rate)(torch.eye(2).double())
    assert torch.equal(doubled, torch.tensor([0.0, 2.0], dtype=torch.float64))


# Other leaves


def test_assigned_is_stacked_with_assigned() -> None:
    stacked = fl.stack([[fl.Assigned(torch.tensor([1.0, 2.0]) * k)] for k in range(3)])
    assert isinstance(stacked[0], fl.Assigned)
    assert stacked[0].value.shape == (3, 2)
    assert torch.equal(fl.unstack(stacked)[2][0].value, torch.tensor([2.0, 4.0]))


def test_the_gradients_of_models_are_stacked_with_their_none_and_assigned() -> None:
    models = [fl.Chain(fl.Dense(3, 2, fl.relu), fl.BatchNorm(2)) for _ in range(2)]
    grads = [fl.gradient(lambda m: m(torch.randn(4, 3)).sum(), m) for m in models]
    stacked = fl.stack(grads)
    assert stacked.layers[0].activation is None
    assert stacked.layers[1].running_mean.value.shape == (2, 2)


def test_an_array_of_numpy_is_a_constant_compared_by_value() -> None:
    array = np.arange(3.0)
    stacked = fl.stack([{"x": torch.ones(1), "a": array}, {"x": torch.ones(1), "a": array.copy()}])
    assert stacked["a"] is array
    with pytest.raises(ValueError, match=r"at \['a'\].*make it a tensor to let it differ"):
        fl.stack([{"a": array}, {"a": array + 1}])


def test_a_parameter_of_torch_is_read_as_its_value() -> None:
    stacked = fl.stack([{"w": torch.nn.Parameter(torch.ones(2))}] * 2)
    assert type(stacked["w"]) is Tensor
    assert not stacked["w"].requires_grad


def test_stacking_and_unstacking_are_differentiable() -> None:
    x = torch.tensor([1.0, 2.0])
    grad = fl.gradient(lambda x: fl.unstack(fl.stack([[x], [3 * x]]))[1][0].sum(), x)
    assert torch.equal(grad, torch.tensor([3.0, 3.0]))


def test_members_have_memory_of_their_own() -> None:
    stacked = {"w": torch.ones(3, 2)}
    first = fl.unstack(stacked)[0]
    first["w"].zero_()
    assert torch.equal(stacked["w"], torch.ones(3, 2))


def test_stacked_meta_tensors_stay_on_meta() -> None:
    stacked = fl.stack([Tempered(torch.ones(2, device="meta"))] * 3)
    assert stacked.weight.is_meta
    assert fl.unstack(stacked)[0].weight.shape == (2,)


def test_keys_are_stacked_to_keys() -> None:
    keys = fl.Key(3).split(4)
    stacked = fl.stack(list(keys))
    assert torch.equal(stacked.data, keys.data)
    assert [repr(k) for k in fl.unstack(stacked)] == [repr(k) for k in keys]


# Errors


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([{"a": 1.0}, {"b": 1.0}], r"tree 1 and tree 0 differ in structure: .*lacks 'a'"),
        ([[torch.ones(1)], (torch.ones(1),)], r"tree 1 has a tuple, tree 0 has a list"),
        ([{"a": torch.ones(2)}, {"a": torch.ones(3)}], r"at \['a'\].*shape \(2,\) and tree 1 of \(3,\)"),
        ([[torch.ones(2)], [torch.ones(2).double()]], r"dtype torch.float32 and tree 1 of torch.float64"),
        ([[torch.ones(2)], [torch.ones(2, device="meta")]], r"device cpu and tree 1 of meta"),
        ([[torch.ones(2)], [None]], r"at \[0\], tree 0 has a tensor of shape \(2,\) and tree 1 has None"),
        ([[None], [0.5]], r"at \[0\], tree 0 has None and tree 1 has the float 0.5"),
        ([["a"], ["b"]], r"tree 0 has the str 'a' and tree 1 has the str 'b'; constants are the same"),
        ([[0.5], [0.25]], r"tree 0 has the float 0.5 .*functor\(scalars=…\)"),
        ([[True], [1]], r"tree 0 has the bool True and tree 1 has the int 1; all trees hold"),
        ([[fl.relu], [torch.tanh]], r"the function relu and tree 1 has the function tanh; all members"),
        ([[lambda x: x], [lambda x: x]], r"by identity; define it once, outside of the loop"),
        ([[functools.partial(max, 1)], [functools.partial(max, 1)]], r"compared by identity"),
        ([[fl.Assigned(torch.ones(1))], [torch.ones(1)]], r"at \[0\], tree 0 has Assigned"),
        ([[fl.Assigned(torch.ones(1))], [fl.Assigned(torch.ones(2))]], r"shape \(1,\) and tree 1 of \(2,\)"),
    ],
)  # fmt: skip
def test_what_differs_and_may_not_is_an_error_that_names_the_place(members: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fl.stack(members)


def test_the_third_of_three_trees_is_named() -> None:
    with pytest.raises(ValueError, match=r"at \.name, tree 0 has the str 'a' and tree 2 has the str 'b'"):
        fl.stack([Tempered(torch.ones(1), 0.5, name) for name in "aab"])


def test_ties_of_one_tree_alone_are_an_error() -> None:
    w = torch.ones(2)
    tied, apart = {"a": w, "b": w}, {"a": torch.ones(2), "b": torch.ones(2)}
    with pytest.raises(ValueError, match=r"\['a'\] and \['b'\] are tied in tree 1, but not in tree 0"):
        fl.stack([apart, tied])
    with pytest.raises(ValueError, match=r"\['a'\] and \['b'\] are tied in tree 0, but not in tree 1"):
        fl.stack([tied, apart])


def test_attributes_that_are_no_children_must_agree() -> None:
    stacked = fl.stack([[Strided(torch.ones(1), (2, 2))], [Strided(torch.ones(1), (2, 2))]])
    assert stacked[0].stride == (2, 2)
    with pytest.raises(
        ValueError, match=r"the Strided at \[0\] has stride = \(2, 2\) in tree 0 and \(1, 1\) in tree 1"
    ):
        fl.stack([[Strided(torch.ones(1), (2, 2))], [Strided(torch.ones(1), (1, 1))]])


def test_a_tensor_that_is_no_child_is_told_by_its_shape_in_the_error() -> None:
    one, other, none = (Strided(torch.ones(1), x) for x in (torch.zeros(900), torch.ones(900), None))
    said = r"stride = a tensor of shape \(900,\) in tree 0 and"
    with pytest.raises(ValueError, match=rf"{said} a tensor of shape \(900,\) in tree 1; it is no child"):
        fl.stack([one, other])
    with pytest.raises(ValueError, match=f"{said} None in tree 1; it is no child"):
        fl.stack([one, none])


def test_a_mode_that_is_pinned_in_one_tree_alone_is_an_error() -> None:
    model = fl.Chain(fl.Dense(2, 2), fl.Dropout(0.5))
    pinned = fl.testmode(model)
    assert fl.stack([pinned, pinned]).layers[1](torch.ones(3, 2)).equal(torch.ones(3, 2))
    with pytest.raises(
        ValueError, match="the pinned mode none in tree 0 and 'test' in tree 1; pin all alike"
    ):
        fl.stack([model, pinned])


def test_stack_takes_a_list_of_trees() -> None:
    with pytest.raises(TypeError, match=r"found a Dense; write stack\(\[a, b\]\)"):
        fl.stack(fl.Dense(2, 2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got no trees"):
        fl.stack([])


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"a": torch.ones(2), "b": torch.ones(3)}, r"\['a'\] holds 2 members and \['b'\] 3"),
        ({"a": torch.ones(2), "b": torch.tensor(1.0)}, r"\['b'\] is a 0-d tensor"),
        ({"a": "text"}, "there is no tensor in the tree"),
    ],
)
def test_what_is_no_stack_is_an_error(tree: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fl.unstack(tree)


def test_an_object_of_an_unregistered_class_with_tensors_is_an_error() -> None:
    class Unknown:
        def __init__(self) -> None:
            self.w = torch.ones(1)

    with pytest.raises(TypeError, match="not registered and holds a tensor"):
        fl.stack([[Unknown()], [Unknown()]])
