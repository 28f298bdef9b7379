"""`setup`: a state in the model's shape, one rule for all parameters or one by path."""

from __future__ import annotations

from typing import Any

import optree
import pytest
import torch

import fluxlike as fl


def chain() -> Any:
    return fl.Chain(fl.Dense(3, 4, fl.relu), fl.BatchNorm(4), fl.Dense(4, 2, bias=False))


def test_the_state_is_a_tree_in_the_shape_of_the_model() -> None:
    model = chain()
    state = fl.setup(fl.Adam(), model)
    assert type(state) is fl.Chain
    treedefs = [
        optree.tree_structure(
            t, lambda x: isinstance(x, fl.ParamState), none_is_leaf=True, namespace="fluxlike"
        )
        for t in (state, model)
    ]
    assert treedefs[0] == treedefs[1]


def test_parameters_have_a_state_and_everything_else_has_none() -> None:
    state = fl.setup(fl.Momentum(0.1), chain())
    for layer, name in ((0, "weight"), (0, "bias"), (1, "weight"), (1, "bias"), (2, "weight")):
        entry = getattr(state.layers[layer], name)
        assert isinstance(entry, fl.ParamState)
        assert entry.rule == fl.Momentum(0.1)
        assert entry.frozen is False
    assert state.layers[0].activation is None
    assert state.layers[1].running_mean is None
    assert state.layers[2].bias is None


def test_a_tied_parameter_has_one_state_at_all_its_places() -> None:
    w = torch.ones(2)
    state = fl.setup(fl.Adam(), {"a": w, "b": w, "c": w.clone()})
    assert state["a"].state.exp_avg is state["b"].state.exp_avg
    assert state["a"].state.exp_avg is not state["c"].state.exp_avg


def test_integers_sparse_tensors_and_buffers_have_no_state() -> None:
    model = {"n": torch.tensor(1), "sparse": torch.ones(2).to_sparse(), "w": torch.ones(2)}
    state = fl.setup(fl.Adam(), model)
    assert state["n"] is None
    assert state["sparse"] is None
    assert state["w"] is not None


def test_moments_are_fresh_and_in_the_dtype_of_the_parameter() -> None:
    model = {"w": torch.ones(2, dtype=torch.float64), "h": torch.ones(2, dtype=torch.bfloat16)}
    state = fl.setup(fl.Adam(), model)
    assert torch.equal(state["w"].state.exp_avg, torch.zeros(2, dtype=torch.float64))
    assert torch.equal(state["h"].state.exp_avg, torch.zeros(2))
    assert state["w"].state.step == 0


def test_a_state_of_module_parameters_carries_no_graph() -> None:
    state = fl.setup(fl.Adam(), dict(torch.nn.Linear(2, 2).named_parameters()))
    assert not any(x.requires_grad for x in fl.fleaves(state))
    assert not any(isinstance(x, torch.nn.Parameter) for x in fl.fleaves(state))


def test_a_function_of_the_path_gives_each_parameter_its_rule() -> None:
    asked = []

    def by_path(path: str) -> Any:
        asked.append(path)
        return fl.Descent(0.1) if path.startswith(".layers[0]") else fl.Adam()

    state = fl.setup(by_path, chain())
    assert asked == [
        ".layers[0].weight",
        ".layers[0].bias",
        ".layers[1].weight",
        ".layers[1].bias",
        ".layers[2].weight",
    ]
    assert state.layers[0].bias.rule == fl.Descent(0.1)
    assert state.layers[2].weight.rule == fl.Adam()


def test_rules_by_path_move_each_parameter_by_its_own() -> None:
    model = {"fast": torch.ones(2), "slow": torch.ones(2)}
    state = fl.setup(lambda path: fl.Descent(1.0 if "fast" in path else 0.1), model)
    model, _ = fl.update(state, model, {"fast": torch.ones(2), "slow": torch.ones(2)})
    assert torch.equal(model["fast"], torch.zeros(2))
    assert torch.equal(model["slow"], torch.full((2,), 0.9))


def test_a_single_tensor_is_a_model() -> None:
    state = fl.setup(fl.Descent(1.0), torch.ones(2))
    assert isinstance(state, fl.ParamState)
    moved, _ = fl.update(state, torch.ones(2), torch.ones(2))
    assert torch.equal(moved, torch.zeros(2))


@pytest.mark.parametrize("model", [{"n": torch.tensor(1)}, [], {"f": fl.relu}, None])
def test_setup_warns_when_there_is_nothing_to_train(model: Any) -> None:
    with pytest.warns(UserWarning, match="setup found no parameter to train"):
        fl.setup(fl.Adam(), model)


def test_the_model_is_unchanged_by_setup() -> None:
    model = chain()
    tensors, before = fl.fleaves(model), fl.fleaves(fl.tree.clone(model))
    fl.setup(fl.Adam(), model)
    assert all(a is b for a, b in zip(fl.fleaves(model), tensors, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


def test_a_model_on_the_meta_device_has_a_state_there() -> None:
    state = fl.setup(fl.Adam(), fl.to_device({"w": torch.ones(2)}, "meta"))
    assert {x.device.type for x in fl.fleaves(state)} == {"meta"}


# Errors


def test_a_class_instead_of_a_rule_says_to_make_an_object() -> None:
    with pytest.raises(TypeError, match=r"the class Adam instead of a rule: write Adam\(\)"):
        fl.setup(fl.Adam, chain())


def test_a_class_for_one_path_is_named_with_it() -> None:
    with pytest.raises(TypeError, match=r"the class Adam for \.layers\[0\]\.weight instead of a rule"):
        fl.setup(lambda path: fl.Adam, chain())


def test_a_torch_optimiser_says_to_write_the_rule() -> None:
    optimiser = torch.optim.Adam([torch.zeros(1, requires_grad=True)])
    with pytest.raises(TypeError, match=r"torch optimiser: write the rule, such as fluxlike\.Adam"):
        fl.setup(optimiser, chain())


@pytest.mark.parametrize("rule", [0.1, "adam", None])
def test_something_that_is_no_rule_is_shown(rule: Any) -> None:
    with pytest.raises(TypeError, match=f"setup got {rule!r} .*instead of a rule such as Adam"):
        fl.setup(rule, chain())


@pytest.mark.parametrize("rule", [{"fc": fl.Adam()}, [{"params": [torch.ones(2)], "lr": 0.1}]])
def test_a_dict_or_a_list_of_groups_says_to_write_a_function_of_the_path(rule: Any) -> None:
    with pytest.raises(TypeError, match=rf"setup got a {type(rule).__name__} .*setup\(lambda path: "):
        fl.setup(rule, chain())


@pytest.mark.parametrize("name", ["param_groups", "lr"])
def test_a_state_is_asked_for_its_rate_by_adjust(name: str) -> None:
    with pytest.raises(AttributeError, match=rf"has no '{name}': write state = fluxlike\.adjust\(state, "):
        getattr(fl.setup(fl.Adam(), chain()), name)


def test_no_rule_for_a_path_says_to_freeze() -> None:
    with pytest.raises(TypeError, match=r"None for \.layers\[0\]\.bias instead of a rule.*freeze\(state"):
        fl.setup(lambda path: None if path == ".layers[0].bias" else fl.Adam(), chain())


def test_a_function_that_finds_none_of_its_paths_is_a_warning_that_shows_what_paths_are_like() -> None:
    model = fl.Chain(body=fl.Dense(2, 3), head=fl.Dense(3, 1))
    message = r"all 4 parameters the rule Adam\(lr=0\.1, .*as \.layers\[0\]\.weight and \.layers\[1\]\.bias"
    with pytest.warns(UserWarning, match=message) as found:
        fl.setup(lambda path: fl.Adam(0.2) if path.startswith(".head") else fl.Adam(0.1), model)
    assert found[0].filename == __file__


@pytest.mark.parametrize("places", ["a", "ab"])
def test_a_function_of_the_only_parameter_there_is_no_warning(places: str) -> None:
    w = torch.ones(2)
    state = fl.setup(lambda path: fl.Adam(0.1), dict.fromkeys(places, w))
    assert state["a"].rule == fl.Adam(0.1)


def test_a_state_in_the_rules_place_says_where_a_learner_takes_it() -> None:
    model = chain()
    state, data = fl.setup(fl.Adam(), model), [(torch.ones(1, 2), torch.ones(1, 1))]
    with pytest.raises(TypeError, match=r"got the state of an optimiser .*Learner\(.*, state=state\)"):
        fl.setup(state, model)
    with pytest.raises(TypeError, match=r"got the state of an optimiser .*Learner\(.*, state=state\)"):
        fl.Learner(model, data, state, fl.losses.mse)


def test_a_model_in_the_rules_place_is_named_by_its_class() -> None:
    with pytest.raises(TypeError, match="setup got a Chain, with tensors, instead of a rule such as Adam"):
        fl.setup(chain(), chain())


def test_tied_places_with_different_rules_are_both_named() -> None:
    w = torch.ones(2)
    message = r"\['a'\] and \['b'\] are tied, but have the rules Descent\(lr=0\.1\) and Adam\("
    with pytest.raises(ValueError, match=message):
        fl.setup(lambda path: fl.Descent(0.1) if "a" in path else fl.Adam(), {"a": w, "b": w})


def test_tied_places_with_equal_rules_are_fine() -> None:
    w = torch.ones(2)
    state = fl.setup(lambda path: fl.Adam(1e-2), {"a": w, "b": w})
    assert state["a"].state.exp_avg is state["b"].state.exp_avg


def test_a_chain_of_something_that_is_no_rule_is_an_error() -> None:
    with pytest.raises(
        TypeError, match=r"OptimiserChain takes rules, found .*Adam.*write Adam\(\), not Adam"
    ):
        fl.OptimiserChain(fl.ClipNorm(1.0), fl.Adam)


@pytest.mark.parametrize("cast", [fl.f16, fl.bf16])
def test_a_state_keeps_its_moments_in_float32_when_it_is_cast_to_16_bits(cast):
    state = cast(fl.setup(fl.Adam(), {"w": torch.ones(2)}))
    assert state["w"].state.exp_avg.dtype == torch.float32


def test_a_model_cast_to_16_bits_goes_on_with_its_old_state():
    model = {"w": torch.ones(2)}
    state = fl.setup(fl.Adam(0.5), model)
    model, state = fl.update(state, fl.f16(model), {"w": torch.ones(2, dtype=torch.float16)})
    assert model["w"].dtype == torch.float16
    assert state["w"].state.exp_avg.dtype == torch.float32


class TestWhatIsNoRuleOrNoModel:
    def test_a_schedule(self) -> None:
        with pytest.raises(
            TypeError, match=r"setup got the schedule Exp.*Scheduled\(Adam\(\), lr=schedule\)"
        ):
            fl.setup(fl.schedules.Exp(0.1, 0.9), {"w": torch.ones(1)})

    def test_a_list_of_rules(self) -> None:
        with pytest.raises(TypeError, match=r"setup got a list of rules; write OptimiserChain"):
            fl.setup([fl.ClipGrad(), fl.Adam()], {"w": torch.ones(1)})

    def test_a_class_of_torch(self) -> None:
        with pytest.raises(TypeError, match=r"torch's class Adam: write a rule, such as fluxlike\.Adam"):
            fl.setup(torch.optim.Adam, {"w": torch.ones(1)})

    def test_a_generator_of_parameters(self) -> None:
        with pytest.raises(TypeError, match=r"setup\(rule, dict\(module\.named_parameters\(\)\)\)"):
            fl.setup(fl.Adam(), torch.nn.Linear(1, 1).parameters())
