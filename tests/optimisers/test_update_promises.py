"""Promises of the optimisers that readers of the code asked for."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

import fluxlike as fl


class Still(fl.Adam):
    """Adam's name, but it does not move."""

    def apply(self, state, param, grad):
        return state, torch.zeros_like(param)


class StillAtOnce(fl.Adam):
    def apply_all(self, states, params, grads):
        return states, [torch.zeros_like(p) for p in params]


@pytest.mark.parametrize("rule", [Still(), StillAtOnce(), fl.OptimiserChain(fl.ClipNorm(1.0), Still())])
@pytest.mark.parametrize(
    "how", [lambda *a: fl.update(*a)[0], lambda s, m, g: fl.tree.sub(m, fl.steps(s, m, g)[0])]
)
def test_what_a_subclass_of_a_rule_overrides_is_what_runs(rule, how):
    model = {"w": torch.ones(2)}
    assert torch.equal(how(fl.setup(rule, model), model, {"w": torch.ones(2)})["w"], model["w"])


RULES = [
    fl.Descent(0.1),
    fl.Momentum(0.1),
    fl.Nesterov(0.1),
    fl.Adam(0.1),
    fl.AdamW(0.1),
    fl.OptimiserChain(fl.ClipNorm(1.0), fl.Descent(0.1)),
    fl.OptimiserChain(fl.ClipGlobalNorm(1.0), fl.Descent(0.1)),
]


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_a_step_can_be_differentiated_where_a_gradient_is_zero(rule):
    w = torch.ones(2)

    def after(k):
        return fl.update(fl.setup(rule, w), w, k * torch.tensor([1.0, 0.0]))[0].sum()

    assert torch.isfinite(fl.gradient(after, torch.tensor(1.0)))
    assert torch.isfinite(fl.gradient(after, torch.tensor(0.0)))


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_a_step_is_the_same_under_vmap(rule):
    model = torch.randn(3, 4, dtype=torch.float64)
    grads = torch.randn(3, 4, dtype=torch.float64)

    def step(w, g):
        return fl.update(fl.setup(rule, w), w, g)[0]

    alone = torch.stack([step(w, g) for w, g in zip(model, grads, strict=True)])
    assert torch.allclose(torch.vmap(step)(model, grads), alone, rtol=1e-12, atol=1e-12)


def test_a_bound_of_zero_stops_a_zero_gradient_without_nan():
    w = {"w": torch.ones(2)}
    rule = fl.OptimiserChain(fl.ClipNorm(0.0), fl.Descent(1.0))
    assert fl.update(fl.setup(rule, w), w, {"w": torch.zeros(2)})[0]["w"].tolist() == [1, 1]


@pytest.mark.parametrize("clip", [fl.ClipNorm(1.0, p=float("inf")), fl.ClipGlobalNorm(1.0, p=float("inf"))])
def test_an_empty_parameter_has_no_norm(clip):
    model = {"a": torch.ones(2), "empty": torch.ones(0)}
    state = fl.setup(fl.OptimiserChain(clip, fl.Descent(1.0)), model)
    moved, _ = fl.update(state, model, fl.tree.zeros_like(model))
    assert moved["empty"].shape == (0,)


def test_a_conjugate_view_moves_like_its_copy():
    w = torch.randn(3, dtype=torch.complex128)
    grad = torch.randn(3, dtype=torch.complex128)
    views = fl.update(fl.setup(fl.Adam(), w.conj()), w.conj(), grad.conj())[0]
    copies = fl.update(
        fl.setup(fl.Adam(), w.conj().clone()), w.conj().resolve_conj(), grad.conj().resolve_conj()
    )[0]
    assert torch.equal(views.resolve_conj(), copies)


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_a_complex32_parameter_has_float32_moments():
    w = torch.ones(2, dtype=torch.complex32)
    state = fl.setup(fl.Adam(0.1), w)
    assert state.state.exp_avg.dtype == torch.float32
    moved, _ = fl.update(state, w, torch.ones(2, dtype=torch.complex32))
    assert moved.dtype == torch.complex32
    assert torch.view_as_real(moved)[:, 0].tolist() == pytest.approx([0.9, 0.9], abs=1e-3)


@pytest.mark.parametrize("grads", [{"w": None}, {"w": torch.ones(2)}])
def test_a_torch_parameter_that_stays_comes_back_as_a_plain_tensor(grads):
    w = torch.nn.Parameter(torch.ones(2))
    state = fl.freeze(fl.setup(fl.Adam(), {"w": w}))
    moved, _ = fl.update(state, {"w": w}, grads)
    assert type(moved["w"]) is torch.Tensor
    assert not moved["w"].requires_grad


def test_a_gradient_that_is_one_number_expanded_moves_its_parameter():
    model = {"w": torch.ones(2), "v": torch.ones(2)}
    grads = fl.gradient(lambda m: m["w"].sum() + (m["v"] * torch.tensor([1.0, 2.0])).sum(), model)
    moved, _ = fl.update(fl.setup(fl.Adam(0.1), model), model, grads)
    assert moved["w"].tolist() == pytest.approx([0.9, 0.9])


@dataclass(frozen=True)
class OnlyStep:
    lr: float = 0.1

    def init(self, param):
        return None

    def apply(self, state, param, grad):
        return self.lr * grad


@dataclass(frozen=True)
class InPlace(OnlyStep):
    def apply(self, state, param, grad):
        param.sub_(grad)
        return state, grad


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (OnlyStep(), r"OnlyStep at \['w'\]: apply returned a Tensor; return \(state, step\)"),
        (InPlace(), r"InPlace at \['w'\]: apply changed its arguments in place"),
    ],
)
def test_a_rule_of_a_user_that_goes_wrong_is_named(rule, text):
    model = {"w": torch.ones(2)}
    with pytest.raises(ValueError, match=text):
        fl.update(fl.setup(rule, model), model, {"w": torch.ones(2)})


MODEL = fl.Chain(fl.Dense(2, 2, fl.relu))
STATE = fl.setup(fl.Adam(), MODEL)
GRADS = fl.gradient(lambda m: m(torch.ones(1, 2)).sum(), MODEL)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: fl.update(STATE, GRADS, MODEL),
            r"grads hold relu at \.layers\[0\]\.activation.*are swapped",
        ),
        (lambda: fl.update(fl.Adam(), MODEL, GRADS), r"the first argument is a rule: write state = setup"),
        (lambda: fl.update((MODEL, STATE), MODEL, GRADS), r"the state is all that update returned: unpack"),
        (lambda: fl.update(STATE, (MODEL, STATE), GRADS), r"the model is all that update returned: unpack"),
        (lambda: fl.update(STATE, MODEL, (torch.ones(()), GRADS)), r"grads is a pair: unpack it"),
        (lambda: fl.setup(MODEL, fl.Adam()), r"swapped: write setup\(rule, model\)"),
        (lambda: fl.Adam(MODEL), r"lr is a Chain; write a number .* parameters go to setup"),
        (lambda: fl.Adam("0.1"), r"lr is a str; write a number"),
        (lambda: fl.ClipNorm(fl.Adam()), r"max_norm is an Adam; .*OptimiserChain\(first, second\)"),
        (lambda: fl.adjust(STATE, "0.1"), r"the text '0\.1' as the learning rate: write a number"),
        (lambda: fl.adjust(STATE, betas=0.9), r"betas=0.9: write a pair of decay rates"),
        (lambda: fl.OptimiserChain([fl.Adam()]), r"write OptimiserChain\(\*rules\)"),
        (lambda: fl.freeze(STATE, STATE.layers[0]), r"where= is a Dense; write a selector"),
    ],
)
def test_a_mistaken_call_says_what_to_write(call, text):
    with pytest.raises((TypeError, ValueError), match=text):
        call()


def test_a_state_prints_a_line_for_each_parameter():
    assert repr(STATE).count("\n") == 6
    assert repr(STATE.layers[0].weight) == f"ParamState({fl.Adam()!r})"


def test_the_moments_of_a_state_are_no_parameters():
    assert fl.trainables(STATE) == []
