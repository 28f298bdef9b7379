"""`adjust`, `freeze` and `thaw`: a new state, with everything else kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fluxlike as fl


def trained(rule: Any) -> tuple[Any, Any]:
    """A small model and its state after one step."""
    model = {"a": torch.ones(2), "b": [torch.ones(3)]}
    return fl.update(fl.setup(rule, model), model, fl.tree.scale(model, 0.5))


def rates(state: Any) -> tuple[Any, Any]:
    return state["a"].rule.lr, state["b"][0].rule.lr


def test_a_new_rate_is_that_of_every_rule() -> None:
    _, state = trained(fl.Adam(1e-3))
    assert rates(fl.adjust(state, 1e-4)) == (1e-4, 1e-4)


def test_hyperparameters_are_changed_by_name() -> None:
    _, state = trained(fl.AdamW())
    rule = fl.adjust(state, weight_decay=0.5, betas=(0.8, 0.9))["a"].rule
    assert rule == fl.AdamW(weight_decay=0.5, betas=(0.8, 0.9))


def test_the_state_given_is_unchanged_and_moments_are_kept() -> None:
    _, state = trained(fl.Adam(1e-3))
    moments = state["a"].state
    new = fl.adjust(state, 1e-4)
    assert rates(state) == (1e-3, 1e-3)
    assert new["a"].state is moments


@pytest.mark.parametrize("where", ["['b']", lambda s: s["b"], lambda s: s["b"][0], ("['b'][0]",)])
def test_one_place_of_the_state_can_be_adjusted_alone(where: Any) -> None:
    _, state = trained(fl.Adam(1e-3))
    assert rates(fl.adjust(state, 1e-4, where=where)) == (1e-3, 1e-4)


def test_the_place_of_a_layer_is_that_of_the_model() -> None:
    model = fl.Chain(fl.Dense(3, 2), fl.Dense(2, 1))
    state = fl.adjust(fl.setup(fl.Adam(), model), 0.5, where=lambda s: s.layers[0])
    assert (state.layers[0].bias.rule.lr, state.layers[1].bias.rule.lr) == (0.5, 1e-3)


def test_rules_inside_a_chain_are_adjusted() -> None:
    rule = fl.OptimiserChain(fl.ClipNorm(1.0), fl.WeightDecay(0.1), fl.Adam(1e-3))
    _, state = trained(rule)
    new = fl.adjust(fl.adjust(state, 0.5), max_norm=2.0)
    assert new["a"].rule == fl.OptimiserChain(fl.ClipNorm(2.0), fl.WeightDecay(0.1), fl.Adam(0.5))


def test_a_name_that_some_of_the_rules_have_changes_those() -> None:
    model = {"a": torch.ones(1), "b": torch.ones(1)}
    state = fl.setup(lambda path: fl.Momentum() if "a" in path else fl.Descent(), model)
    state = fl.adjust(state, momentum=0.5)
    assert (state["a"].rule, state["b"].rule) == (fl.Momentum(momentum=0.5), fl.Descent())


def test_an_adjusted_state_moves_by_the_new_rate() -> None:
    model, state = trained(fl.Descent(1.0))
    moved, _ = fl.update(fl.adjust(state, 0.1), model, {"a": torch.ones(2), "b": [None]})
    assert torch.equal(moved["a"], model["a"] - 0.1 * torch.ones(2))


def test_a_shared_clip_stays_shared_after_adjust() -> None:
    rule = fl.OptimiserChain(fl.ClipGlobalNorm(1.0), fl.Descent(1.0))
    model = [torch.zeros(1), torch.zeros(1)]
    state = fl.adjust(fl.setup(rule, model), 2.0, where="[1]")
    moved, _ = fl.update(state, model, [torch.tensor([3.0]), torch.tensor([4.0])])
    torch.testing.assert_close(moved, [torch.tensor([-0.6]), torch.tensor([-1.6])])


def test_a_rate_may_be_a_tensor() -> None:
    _, state = trained(fl.Adam())
    lr = torch.tensor(0.5)
    assert fl.adjust(state, lr)["a"].rule.lr is lr


def test_an_unknown_hyperparameter_names_those_there_are() -> None:
    _, state = trained(fl.Momentum())
    with pytest.raises(ValueError, match="no rule there has a hyperparameter 'beta'; they have lr, momentum"):
        fl.adjust(state, beta=0.5)


def test_one_unknown_name_among_known_ones_is_an_error() -> None:
    _, state = trained(fl.Momentum())
    with pytest.raises(ValueError, match="hyperparameter 'eta'"):
        fl.adjust(state, 0.1, eta=0.5)


def test_a_name_that_the_rules_of_the_place_lack_is_an_error() -> None:
    model = {"a": torch.ones(1), "b": torch.ones(1)}
    state = fl.setup(lambda path: fl.Momentum() if "a" in path else fl.Descent(), model)
    with pytest.raises(ValueError, match="hyperparameter 'momentum'; they have lr"):
        fl.adjust(state, momentum=0.5, where="['b']")


def test_the_structure_of_a_rule_is_no_hyperparameter() -> None:
    _, state = trained(fl.OptimiserChain(fl.ClipNorm(), fl.Descent()))
    with pytest.raises(ValueError, match="hyperparameter 'rules'"):
        fl.adjust(state, rules=())


def test_a_value_that_the_rule_refuses_is_an_error() -> None:
    _, state = trained(fl.Adam())
    with pytest.raises(ValueError, match=r"lr=-1\.0"):
        fl.adjust(state, -1.0)


def test_nothing_to_change_is_an_error() -> None:
    _, state = trained(fl.Adam())
    with pytest.raises(TypeError, match=r"nothing to change: write adjust\(state, 1e-4\)"):
        fl.adjust(state)


def test_the_rate_given_twice_is_an_error() -> None:
    _, state = trained(fl.Adam())
    with pytest.raises(TypeError, match="the learning rate twice"):
        fl.adjust(state, 0.1, lr=0.2)


@pytest.mark.parametrize("lr", [{}, {"lr": 0.1}], ids=["alone", "with lr="])
def test_a_place_where_the_rate_stands_is_an_error_that_names_where(lr: Any) -> None:
    _, state = trained(fl.Adam())
    with pytest.raises(TypeError, match=r"the text '\.w' as the learning rate: write a number.*where='\.w'"):
        fl.adjust(state, ".w", **lr)
    with pytest.raises(TypeError, match=r"by name: where="):
        fl.adjust(state, lambda s: s["b"], **lr)


@pytest.mark.parametrize("change", [fl.freeze, fl.thaw])
def test_a_place_may_be_named_as_in_adjust(change: Any) -> None:
    _, state = trained(fl.Adam())
    state = fl.freeze(state, where="['a']")
    assert state["a"].frozen
    assert change(state, where="['b']")["b"][0].frozen is (change is fl.freeze)


def test_a_place_without_a_parameter_is_an_error() -> None:
    model = {"w": torch.ones(1), "name": "text"}
    state = fl.setup(fl.Adam(), model)
    for change in (
        lambda: fl.adjust(state, 0.1, where="['name']"),
        lambda: fl.freeze(state, "['name']"),
        lambda: fl.thaw(state, "['name']"),
    ):
        with pytest.raises(ValueError, match="no parameter at the chosen place of the state"):
            change()


def test_a_place_that_is_not_there_is_named() -> None:
    state = fl.setup(fl.Adam(), {"w": torch.ones(1)})
    with pytest.raises(KeyError, match=r"no place .*head.*: the root is a dict holding"):
        fl.freeze(state, "['head']")


def test_a_model_in_the_place_of_the_state_is_an_error() -> None:
    for change in (
        lambda m: fl.adjust(m, 0.1),
        lambda m: fl.adjust(m, 0.1, where="['w']"),
        fl.freeze,
        fl.thaw,
    ):
        with pytest.raises(
            ValueError, match="holds no state of an optimiser; give what setup or update return"
        ):
            change({"w": torch.ones(1)})
    with pytest.raises(ValueError, match=r"holds no state of an optimiser"):
        fl.freeze({"w": torch.ones(1)}, "['w']")


# freeze and thaw


def loss(m: Any) -> Tensor:
    return (m["a"] ** 2).sum() + (m["b"][0] ** 3).sum()


def test_a_frozen_parameter_and_its_state_stay_the_same_objects() -> None:
    model, state = trained(fl.Adam())
    state = fl.freeze(state, "['a']")
    moved, after = fl.update(state, model, fl.gradient(loss, model))
    assert moved["a"] is model["a"]
    assert after["a"] is state["a"]
    assert moved["b"][0] is not model["b"][0]


def test_freeze_without_a_place_freezes_everything() -> None:
    model, state = trained(fl.Adam())
    moved, _ = fl.update(fl.freeze(state), model, fl.gradient(loss, model))
    assert moved["a"] is model["a"]
    assert moved["b"][0] is model["b"][0]


def test_what_is_frozen_counts_by_itself_so_that_no_update_parts_it_from_what_moves() -> None:
    """A tie that the first update breaks would be another trace of `jit`."""
    model = {name: torch.ones(2) for name in "abcd"}
    start = fl.setup(fl.Adam(), model)
    state = fl.freeze(start, ("['a']", "['b']"))
    a, b, c, d = (state[name].state.step for name in "abcd")
    assert a is b
    assert c is d is start["a"].state.step
    assert a is not c
    assert a.item() == 0
    jitted = fl.jit(fl.update)
    for _ in range(3):
        model, state = jitted(state, model, fl.tree.clone(model))
    assert jitted.cache_info() == (3, 1)
    assert [state[name].state.step.item() for name in "abcd"] == [0, 0, 3, 3]


def test_thaw_undoes_freeze() -> None:
    model, state = trained(fl.Adam())
    again = fl.thaw(fl.freeze(state), "['a']")
    assert (again["a"].frozen, again["b"][0].frozen) == (False, True)
    straight, _ = fl.update(state, model, fl.gradient(loss, model))
    moved, _ = fl.update(again, model, fl.gradient(loss, model))
    assert torch.equal(moved["a"], straight["a"])


def all_but_b(path: str, node: Any) -> bool:
    return not path.startswith("['b']")


@pytest.mark.parametrize("change", [fl.freeze, fl.thaw, lambda s, where: fl.adjust(s, 1.0, where=where)])
def test_a_predicate_that_is_true_of_the_root_for_its_path_is_an_error(change: Any) -> None:
    _, state = trained(fl.Adam(1e-3))
    with pytest.raises(
        ValueError,
        match=r"whole tree, whose path is '',.* false of \['b'\]\[0\]; write isinstance\(node, "
        r"fluxlike\.ParamState\) and ….*fluxlike\.thaw\(fluxlike\.freeze\(state\), place\)",
    ):
        change(state, all_but_b)


def test_all_but_one_place_is_frozen_in_either_way() -> None:
    _, state = trained(fl.Adam(1e-3))
    thawed = fl.thaw(fl.freeze(state), "['b']")
    chosen = fl.freeze(state, lambda path, node: isinstance(node, fl.ParamState) and all_but_b(path, node))
    for after in thawed, chosen:
        assert (after["a"].frozen, after["b"][0].frozen) == (True, False)
    slower = fl.adjust(
        state, 1.0, where=lambda path, node: isinstance(node, fl.ParamState) and all_but_b(path, node)
    )
    assert rates(slower) == (1.0, 1e-3)


def test_freeze_leaves_the_state_given_alone() -> None:
    _, state = trained(fl.Adam())
    fl.freeze(state)
    assert not state["a"].frozen


def test_adjust_keeps_what_is_frozen() -> None:
    _, state = trained(fl.Adam())
    assert fl.adjust(fl.freeze(state, "['a']"), 0.1)["a"].frozen


def test_freeze_takes_several_places() -> None:
    _, state = trained(fl.Adam())
    frozen = fl.freeze(state, ("['a']", lambda s: s["b"]))
    assert frozen["a"].frozen
    assert frozen["b"][0].frozen


@pytest.mark.parametrize("place", ["['a']", "['b']"])
def test_a_tied_parameter_is_frozen_if_any_of_its_places_is(place: str) -> None:
    w = torch.ones(2)
    model = {"a": w, "b": w}
    state = fl.freeze(fl.setup(fl.Descent(0.1), model), place)
    moved, after = fl.update(state, model, {"a": torch.ones(2), "b": torch.ones(2)})
    assert moved["a"] is moved["b"] is w
    assert after[place[2]] is state[place[2]]
