"""Translation with torch.optim: a run may be handed over in the middle, both ways."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import fluxlike as fl

O = torch.optim  # noqa: E741

SAME: dict[str, tuple[Any, Callable[[Any], O.Optimizer]]] = {
    "Descent": (fl.Descent(0.05), lambda p: O.SGD(p, 0.05)),
    "Momentum": (fl.Momentum(0.05, 0.8), lambda p: O.SGD(p, 0.05, 0.8)),
    "Nesterov": (fl.Nesterov(0.05, 0.8), lambda p: O.SGD(p, 0.05, 0.8, nesterov=True)),
    "WeightDecay, Descent": (
        fl.OptimiserChain(fl.WeightDecay(0.1), fl.Descent(0.05)),
        lambda p: O.SGD(p, 0.05, weight_decay=0.1),
    ),
    "WeightDecay, Momentum": (
        fl.OptimiserChain(fl.WeightDecay(0.1), fl.Momentum(0.05, 0.8)),
        lambda p: O.SGD(p, 0.05, 0.8, weight_decay=0.1),
    ),
    "Adam": (fl.Adam(0.05, weight_decay=0.1), lambda p: O.Adam(p, 0.05, weight_decay=0.1)),
    "AdamW": (
        fl.AdamW(0.05, betas=(0.8, 0.9), eps=1e-6),
        lambda p: O.AdamW(p, 0.05, betas=(0.8, 0.9), eps=1e-6),
    ),
    "AMSGrad": (fl.AMSGrad(0.05), lambda p: O.Adam(p, 0.05, amsgrad=True)),
    "AMSGrad, decoupled": (
        fl.AMSGrad(0.05, weight_decay=0.1, decoupled_weight_decay=True),
        lambda p: O.AdamW(p, 0.05, weight_decay=0.1, amsgrad=True),
    ),
    "NAdam": (
        fl.NAdam(0.05, weight_decay=0.1, decoupled_weight_decay=True),
        lambda p: O.NAdam(p, 0.05, weight_decay=0.1, decoupled_weight_decay=True),
    ),
    "RAdam": (fl.RAdam(0.05, weight_decay=0.1), lambda p: O.RAdam(p, 0.05, weight_decay=0.1)),
    "AdaMax": (fl.AdaMax(0.05), lambda p: O.Adamax(p, 0.05)),
    "AdaGrad": (
        fl.AdaGrad(0.05, lr_decay=0.1, initial_accumulator_value=0.2),
        lambda p: O.Adagrad(p, 0.05, lr_decay=0.1, initial_accumulator_value=0.2),
    ),
    "AdaDelta": (fl.AdaDelta(0.5, rho=0.8), lambda p: O.Adadelta(p, 0.5, rho=0.8)),
    "RMSProp": (fl.RMSProp(0.01), lambda p: O.RMSprop(p, 0.01)),
    "RMSProp, centered": (
        fl.RMSProp(0.01, momentum=0.9, centered=True),
        lambda p: O.RMSprop(p, 0.01, momentum=0.9, centered=True),
    ),
    "Rprop": (fl.Rprop(0.05), lambda p: O.Rprop(p, 0.05)),
    "Adafactor": (fl.Adafactor(0.05, weight_decay=0.1), lambda p: O.Adafactor(p, 0.05, weight_decay=0.1)),
}


@pytest.fixture(autouse=True)
def float64_by_default() -> Any:
    """torch.optim keeps some products in the default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def values(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def gradient_at(params: dict[str, Tensor], t: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(t)
    return {
        k: torch.randn(p.shape, generator=generator, dtype=p.dtype) + 0.3 * p.detach()
        for k, p in params.items()
    }


def run_torch(module: nn.Module, optimiser: O.Optimizer, steps: range) -> None:
    params = dict(module.named_parameters())
    for t in steps:
        for name, g in gradient_at(params, t).items():
            params[name].grad = g
        optimiser.step()


def run_ours(model: Any, state: Any, steps: range) -> tuple[Any, Any]:
    for t in steps:
        model, state = fl.update(state, model, gradient_at(model, t))
    return model, state


def uninterrupted(make: Callable[[Any], O.Optimizer], steps: int = 30) -> dict[str, Tensor]:
    module = network()
    run_torch(module, make(module.parameters()), range(steps))
    return values(module)


@pytest.mark.parametrize("name", SAME)
def test_a_run_of_torch_goes_on_here_with_the_same_numbers(name: str) -> None:
    rule, make = SAME[name]
    module = network()
    optimiser = make(module.parameters())
    run_torch(module, optimiser, range(12))
    found, state = fl.from_torch_optimiser(optimiser, values(module), module=module)
    assert found == rule
    model, _ = run_ours(values(module), state, range(12, 30))
    for key, expected in uninterrupted(make).items():
        assert_close(model[key], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SAME)
def test_a_run_here_goes_on_in_torch_with_the_same_numbers(name: str) -> None:
    rule, make = SAME[name]
    module = network()
    model = values(module)
    model, state = run_ours(model, fl.setup(rule, model), range(12))
    module.load_state_dict(model)
    optimiser = fl.to_torch_optimiser(rule, state, module)
    theirs = make(network().parameters())
    family = O.Adam if isinstance(theirs, O.AdamW) else type(theirs)
    assert isinstance(optimiser, family)
    run_torch(module, optimiser, range(12, 30))
    for key, expected in uninterrupted(make).items():
        assert_close(values(module)[key], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SAME)
def test_there_and_back_gives_the_rule_and_the_state_again(name: str) -> None:
    rule, _ = SAME[name]
    module = network()
    model, state = run_ours(values(module), fl.setup(rule, values(module)), range(5))
    optimiser = fl.to_torch_optimiser(rule, state, module)
    found, back = fl.from_torch_optimiser(optimiser, model, module=module)
    assert found == rule
    for key, entry in state.items():
        mine, theirs = ((s,) if isinstance(s, Tensor) else s for s in (entry.state, back[key].state))
        for a, b in zip(mine or (), theirs or (), strict=True):
            assert a is b is None or torch.equal(a, b)


@pytest.mark.parametrize("name", ["Momentum", "Adam", "NAdam", "AdaGrad"])
def test_a_first_step_in_torch_needs_no_step_here(name: str) -> None:
    rule, make = SAME[name]
    module = network()
    run_torch(module, fl.to_torch_optimiser(rule, fl.setup(rule, values(module)), module), range(10))
    fresh = network()
    run_torch(fresh, fl.to_torch_optimiser(rule, None, fresh), range(10))
    for key, expected in uninterrupted(make, 10).items():
        assert_close(values(module)[key], expected, rtol=1e-12, atol=1e-12)
        assert_close(values(fresh)[key], expected, rtol=1e-12, atol=1e-12)


def test_an_optimiser_that_has_not_stepped_gives_a_first_state() -> None:
    module = network()
    _, state = fl.from_torch_optimiser(O.Adam(module.parameters()), values(module), module=module)
    assert int(state["0.weight"].state.step) == 0


def test_muon_is_translated_over_matrices() -> None:
    torch.manual_seed(0)
    module = nn.Linear(4, 3, bias=False)
    optimiser = O.Muon(module.parameters(), 0.02)
    run_torch(module, optimiser, range(5))
    rule, state = fl.from_torch_optimiser(optimiser, values(module))
    assert rule == fl.Muon(0.02)
    model, state = run_ours(values(module), state, range(5, 9))
    run_torch(module, optimiser, range(5, 9))
    assert_close(model["weight"], module.weight.detach(), rtol=1e-10, atol=1e-10)
    back = fl.to_torch_optimiser(rule, state, module)
    assert_close(back.state[module.weight]["momentum_buffer"], state["weight"].state.momentum_buffer)


def test_muon_over_other_parameters_is_refused() -> None:
    model = {"w": torch.ones(2, 2), "b": torch.ones(2)}
    with pytest.raises(ValueError, match=r"\['b'\] is no matrix, so Muon leaves it to AdamW"):
        fl.to_torch_optimiser(fl.Muon(), fl.setup(fl.Muon(), model), model)


def test_a_chain_is_matched_to_a_sequential_by_order() -> None:
    module = network()
    model = fl.Chain(fl.Dense(3, 4, torch.tanh), fl.Dense(4, 2))
    state = fl.setup(fl.Adam(), model)
    optimiser = fl.to_torch_optimiser(fl.Adam(), state, module)
    assert [p.shape for p in optimiser.param_groups[0]["params"]] == [p.shape for p in module.parameters()]


def test_names_decide_where_they_are_shared() -> None:
    module = network()
    model = dict(reversed(values(module).items()))  # another order
    state = fl.setup(fl.Momentum(0.1), model)
    model, state = fl.update(state, model, model)
    optimiser = fl.to_torch_optimiser(fl.Momentum(0.1), state, module)
    weight = dict(module.named_parameters())["2.weight"]
    assert_close(optimiser.state[weight]["momentum_buffer"], state["2.weight"].state)


def test_rules_by_path_become_groups_and_come_back() -> None:
    module = network()
    by_path = lambda path: fl.Adam(0.1) if "0." in path else fl.Adam(0.01)  # noqa: E731
    model = values(module)
    state = fl.setup(by_path, model)
    model, state = run_ours(model, state, range(3))
    optimiser = fl.to_torch_optimiser(by_path, state, module)
    assert [g["lr"] for g in optimiser.param_groups] == [0.1, 0.01]
    rule, back = fl.from_torch_optimiser(optimiser, model, module=module)
    assert rule("['0.weight']") == fl.Adam(0.1)
    assert rule("['2.bias']") == fl.Adam(0.01)
    assert back["2.bias"].rule == fl.Adam(0.01)
    assert_close(back["0.bias"].state.exp_avg, state["0.bias"].state.exp_avg)


def test_groups_without_names_are_refused() -> None:
    module = network()
    groups = [{"params": [p]} for p in module.parameters()]
    with pytest.raises(ValueError, match=r"several groups and no names.*module=module"):
        fl.from_torch_optimiser(O.Adam(groups), values(module))


def test_an_optimiser_made_of_named_parameters_needs_no_module() -> None:
    module = network()
    named = list(module.named_parameters())
    optimiser = O.Adam([{"params": named[:1], "lr": 0.1}, {"params": named[1:], "lr": 0.2}])
    rule, _ = fl.from_torch_optimiser(optimiser, values(module))
    assert [rule(f"['{name}']").lr for name, _ in named] == [0.1, 0.2, 0.2, 0.2]


def test_the_modules_own_parameters_are_matched_by_identity() -> None:
    module = network()
    groups = [{"params": [p], "lr": 0.1 * (k + 1)} for k, p in enumerate(module.parameters())]
    model = list(reversed(list(module.parameters())))
    _, state = fl.from_torch_optimiser(O.Adam(groups), model)
    assert [round(s.rule.lr, 6) for s in state] == [0.4, 0.3, 0.2, 0.1]


def test_adjusted_hyperparameters_are_handed_over() -> None:
    module = network()
    state = fl.adjust(fl.setup(fl.Adam(0.1), values(module)), 0.3, betas=(0.5, 0.6))
    group = fl.to_torch_optimiser(fl.Adam(0.1), state, module).param_groups[0]
    assert (group["lr"], group["betas"]) == (0.3, (0.5, 0.6))


def test_frozen_parameters_are_left_out_and_missing_ones_come_frozen() -> None:
    module = network()
    state = fl.freeze(fl.setup(fl.Adam(), values(module)), "['0.weight']")
    optimiser = fl.to_torch_optimiser(fl.Adam(), state, module)
    assert len(optimiser.param_groups[0]["params"]) == 3
    _, back = fl.from_torch_optimiser(optimiser, values(module), module=module)
    assert [e.frozen for e in back.values()] == [True, False, False, False]


def test_a_tied_parameter_is_translated_once() -> None:
    embedding = nn.Embedding(5, 3)
    head = nn.Linear(3, 5, bias=False)
    head.weight = embedding.weight
    module = nn.ModuleDict({"embed": embedding, "head": head})
    w = embedding.weight.detach().clone()
    model = {"embed": {"weight": w}, "head": {"weight": w}}
    state = fl.setup(fl.Adam(), model)
    optimiser = fl.to_torch_optimiser(fl.Adam(), state, module)
    assert optimiser.param_groups[0]["params"] == [embedding.weight]
    _, back = fl.from_torch_optimiser(optimiser, model, module=module)
    assert back["embed"]["weight"] is back["head"]["weight"]


def test_complex_parameters_keep_their_moments() -> None:
    p = nn.Parameter(torch.randn(3, dtype=torch.complex128))
    optimiser = O.Adam([p], 0.1)
    for _ in range(3):
        p.grad = torch.randn(3, dtype=torch.complex128)
        optimiser.step()
    x, g = p.detach().clone(), torch.randn(3, dtype=torch.complex128)
    rule, state = fl.from_torch_optimiser(optimiser, [x])
    (ours,), state = fl.update(state, [x], [g])
    p.grad = g
    optimiser.step()
    assert_close(ours, p.detach(), rtol=1e-12, atol=1e-12)
    back = fl.to_torch_optimiser(rule, state, [p])
    assert_close(back.state[p]["exp_avg"], optimiser.state[p]["exp_avg"])


def test_the_moments_are_copies() -> None:
    module = network()
    optimiser = O.Adam(module.parameters())
    run_torch(module, optimiser, range(2))
    model = values(module)
    _, state = fl.from_torch_optimiser(optimiser, model, module=module)
    fl.update(state, model, gradient_at(model, 2), donate=True)
    before = {k: v["exp_avg"].clone() for k, v in enumerate(optimiser.state.values())}
    run_torch(module, optimiser, range(2, 3))
    assert all(not torch.equal(v["exp_avg"], before[k]) for k, v in enumerate(optimiser.state.values()))


def test_moments_of_16_bit_parameters_are_rounded_with_a_warning() -> None:
    p = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    state = fl.setup(fl.Adam(), [p.detach()])
    with pytest.warns(UserWarning, match="16-bit parameters in 16 bits"):
        optimiser = fl.to_torch_optimiser(fl.Adam(), state, [p])
    assert optimiser.state[p]["exp_avg"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("rule", "nearest"),
    [
        (fl.Lion(), "torch.optim.SGD with momentum"),
        (fl.Lamb(), "torch.optim.AdamW"),
        (fl.OAdam(), "torch.optim.Adam"),
        (fl.AdaBelief(), "torch.optim.Adam"),
        (fl.ScheduleFree(), "torch.optim.AdamW"),
        (fl.AdamW(couple=False), "torch.optim.AdamW with weight_decay divided by lr"),
        (fl.EMA(fl.Adam()), "torch.optim.swa_utils.AveragedModel"),
        (fl.Scheduled(fl.Adam(), lr=fl.schedules.Exp(0.1, 0.9)), "torch.optim.lr_scheduler"),
        (fl.MixedPrecision(torch.float32, fl.Adam()), "float32 module"),
        (fl.ApplyIfFinite(fl.Adam()), "torch.amp.GradScaler"),
        (fl.Lookahead(fl.Adam()), "the rule inside"),
        (fl.OptimiserChain(fl.ClipGlobalNorm(), fl.Adam()), "torch.nn.utils.clip_grad_norm_"),
        (fl.OptimiserChain(fl.AccumGrad(2), fl.Adam()), "backward n times"),
        (fl.OptimiserChain(fl.Adam(), fl.Momentum()), "its last rule"),
        (fl.OptimiserChain(fl.WeightDecay(0.1), fl.AdamW()), "its last rule"),
    ],
    ids=lambda v: repr(v)[:30],
)
def test_what_torch_has_not_is_an_error_with_the_nearest(rule: Any, nearest: str) -> None:
    module = network()
    with pytest.raises(ValueError, match=r"torch\.optim has nothing for") as error:
        fl.to_torch_optimiser(rule, fl.setup(rule, values(module)), module)
    assert nearest in str(error.value)


@pytest.mark.parametrize(
    ("make", "nearest"),
    [
        (lambda p: O.ASGD(p), r"EMA\(fluxlike.Descent"),
        (lambda p: O.LBFGS(p), "fluxlike.Rprop"),
        (lambda p: O.SparseAdam(list(p)), "fluxlike.Adam"),
        (lambda p: O.SGD(p, momentum=0.9, dampening=0.1), "fluxlike.Momentum"),
        (lambda p: O.Adam(p, maximize=True), "minus sign"),
    ],
    ids=["ASGD", "LBFGS", "SparseAdam", "dampening", "maximize"],
)
def test_what_fluxlike_has_not_is_an_error_with_the_nearest(make: Any, nearest: str) -> None:
    module = network()
    with pytest.raises(ValueError, match=nearest):
        fl.from_torch_optimiser(make(module.parameters()), values(module))


def test_a_subclass_of_an_optimiser_of_torch_may_do_something_else() -> None:
    class Mine(O.Adam):
        pass

    module = network()
    with pytest.raises(ValueError, match="no rule for Mine; the nearest is a rule of your own"):
        fl.from_torch_optimiser(Mine(module.parameters()), values(module))


def test_the_order_of_a_dict_is_not_taken_for_the_order_in_torch() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model = {"b": module[0].weight.detach().clone(), "a": module[1].weight.detach().clone()}
    optimiser = O.Adam([module[0].weight, module[1].weight])
    with pytest.raises(ValueError, match=r"\['a'\] stands in a dict, .* module=module"):
        fl.from_torch_optimiser(optimiser, model)
    with pytest.raises(ValueError, match=r"\['a'\] stands in a dict, .* the names of the module"):
        fl.to_torch_optimiser(fl.Adam(), fl.setup(fl.Adam(), model), module)


def test_a_tied_parameter_in_a_later_group_keeps_its_rule() -> None:
    w, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    model = {"a": b, "tied": [w, w]}
    optimiser = O.Adam([{"params": [b], "lr": 0.1}, {"params": [w], "lr": 0.2}])
    rule, _ = fl.from_torch_optimiser(optimiser, model)
    assert fl.setup(rule, model)["tied"][1].rule.lr == 0.2


class TestMismatches:
    def test_a_module_that_the_optimiser_knows_nothing_of(self) -> None:
        module = network()
        with pytest.raises(ValueError, match="the optimiser has none of the module's parameters"):
            fl.from_torch_optimiser(O.Adam(module.parameters()), values(module), module=network())

    def test_the_module_lacks_a_parameter(self) -> None:
        state = fl.setup(fl.Adam(), {"0.weight": torch.ones(4, 3), "extra": torch.ones(1)})
        with pytest.raises(ValueError, match=r"no parameter 'extra' for \['extra'\]"):
            fl.to_torch_optimiser(fl.Adam(), state, network())

    def test_the_counts_differ(self) -> None:
        with pytest.raises(ValueError, match="the state has 1 parameters and the module 4"):
            fl.to_torch_optimiser(fl.Adam(), fl.setup(fl.Adam(), [torch.ones(1)]), network())

    def test_the_shapes_differ(self) -> None:
        state = fl.setup(fl.Adam(), [torch.ones(2)])
        with pytest.raises(
            ValueError, match=r"of \[0\] is of shape \(2,\), the parameter of the module of \(3,\)"
        ):
            fl.to_torch_optimiser(fl.Adam(), state, [nn.Parameter(torch.ones(3))])

    def test_the_model_lacks_a_parameter_of_the_optimiser(self) -> None:
        module = network()
        model = values(module)
        del model["0.weight"]
        with pytest.raises(ValueError, match="there are 4 parameters of torch and 3 in the model"):
            fl.from_torch_optimiser(O.Adam(module.parameters()), list(model.values()))
        with pytest.raises(ValueError, match="the optimiser has 4 parameters, of which the model has 3"):
            fl.from_torch_optimiser(O.Adam(module.parameters()), model, module=module)

    def test_parameters_of_another_shape(self) -> None:
        with pytest.raises(ValueError, match=r"\[0\] of the model is of shape \(2,\)"):
            fl.from_torch_optimiser(O.Adam([nn.Parameter(torch.ones(3))]), [torch.ones(2)])

    def test_two_classes_need_two_optimisers(self) -> None:
        module = network()
        rule = lambda path: fl.Adam() if "0." in path else fl.Momentum()  # noqa: E731
        with pytest.raises(
            ValueError, match=r"torch.optim.Adam at \['0.bias'\], torch.optim.SGD at \['2.bias'\]"
        ):
            fl.to_torch_optimiser(rule, fl.setup(rule, values(module)), module)

    def test_nothing_to_optimise(self) -> None:
        module = network()
        with pytest.raises(ValueError, match="all parameters of the state are frozen"):
            fl.to_torch_optimiser(fl.Adam(), fl.freeze(fl.setup(fl.Adam(), values(module))), module)

    def test_swapped_arguments(self) -> None:
        module = network()
        state = fl.setup(fl.Adam(), values(module))
        with pytest.raises(TypeError, match=r"to_torch_optimiser\(rule, state, module\)"):
            fl.to_torch_optimiser(fl.Adam(), module, state)
        with pytest.raises(TypeError, match=r"from_torch_optimiser\(optimiser, model\)"):
            fl.from_torch_optimiser(values(module), O.Adam(module.parameters()))
        with pytest.raises(TypeError, match="holds no state of an optimiser"):
            fl.to_torch_optimiser(fl.Adam(), values(module), module)
