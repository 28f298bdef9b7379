"""The fast lane gives what the long way gives: numbers, errors and what stays alive."""

from __future__ import annotations

import contextlib
import gc
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fluxlike as fl
from fluxlike.optimisers import lane, update
from fluxlike.optimisers.lane import Lane

RULES = [
    fl.Descent(0.1),
    fl.Momentum(0.1),
    fl.Nesterov(0.1),
    fl.Adam(0.1),
    fl.AdamW(0.1),
    fl.AMSGrad(0.1),
    fl.AdaGrad(0.1, lr_decay=0.1),
]
each_rule = pytest.mark.parametrize("rule", RULES, ids=lambda r: type(r).__name__)


def without_lane() -> Any:
    return patch.object(update, "lane_of", lambda entries: None)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pair() -> dict[str, Tensor]:
    return {"a": randn(3), "b": randn(2, 2, seed=1)}


def ones(model: Any) -> Any:
    return fl.fmap(torch.ones_like, model)


def stepped(rule: Any, model: Any, steps: int = 1) -> tuple[Any, Any]:
    """A model and state as update returned them, for which there is a lane."""
    state = fl.setup(rule, model)
    for _ in range(steps):
        model, state = fl.update(state, model, ones(model))
    return model, state


def equal(a: Any, b: Any) -> bool:
    return fl.tree.allclose(a, b, rtol=0, atol=0)


class Taken:
    """Counts the steps that the lane took."""

    def __init__(self) -> None:
        self.count = 0
        step = lane.Lane.step

        def spy(this: Any, *args: Any) -> Any:
            result = step(this, *args)
            self.count += result is not None
            return result

        self.patch = patch.object(lane.Lane, "step", spy)


# When it is taken


@each_rule
@pytest.mark.parametrize("donate", [False, True])
def test_a_plain_run_takes_the_lane_from_the_second_step_on(rule: Any, donate: bool) -> None:
    taken = Taken()
    model = pair()
    state = fl.setup(rule, model)
    with taken.patch:
        for _ in range(5):
            model, state = fl.update(state, model, ones(model), donate=donate)
    assert taken.count == 4


@each_rule
def test_a_copied_state_takes_the_lane_too(rule: Any) -> None:
    taken = Taken()
    model = pair()
    model, state = fl.tree.clone((model, fl.setup(rule, model)))
    with taken.patch:
        for _ in range(3):
            model, state = fl.update(state, model, ones(model))
    assert taken.count == 2


# Programs: what may happen between steps


@fl.functor(buffers=("seen",))
class Layer:
    """A weight at two places, a bias, one more, and a buffer that moves."""

    def __init__(self, seed: int) -> None:
        self.weight = randn(2, 3, seed=seed)
        self.again = self.weight
        self.bias = randn(2, seed=seed + 1)
        self.gain = randn(1, seed=seed + 2)
        self.seen = torch.zeros(2)
        self.name = "layer"


def gradient_of(model: Layer, form: str, seed: int) -> Layer:
    """Gradients in one of the forms in which they come."""
    kept = fl.fmap(lambda x: x * 0.1, model)
    grads = fl.at(kept, (".seen", ".name")).set([None, None])
    w = randn(2, 3, seed=seed).to(model.weight.dtype)
    w = {"expanded": w[:, :1].expand(2, 3), "transposed": w.reshape(3, 2).T}.get(form, w)
    grads = fl.at(grads, (".weight", ".again")).set([w, w if form == "at both places" else None])
    if form == "none":
        grads = fl.at(grads, ".bias").set(None)
    if form == "none at all":
        grads = fl.fmap(lambda x: None, grads)
    if form == "assigned":
        new = fl.Assigned(randn(2, seed=seed).to(model.seen.dtype))
        grads = fl.at(grads, ".seen").set(new)
    return grads


def save_and_load(model: Any, state: Any) -> tuple[Any, Any]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run.safetensors"
        fl.save(file, {"model": model, "state": state})
        run = fl.load(file, like={"model": model, "state": state})
    return run["model"], run["state"]


BETWEEN: dict[str, Callable[[Any, Any], tuple[Any, Any]]] = {
    "freeze": lambda m, s: (m, fl.freeze(s, ".bias")),
    "freeze the first": lambda m, s: (m, fl.freeze(s, ".weight")),
    "thaw": lambda m, s: (m, fl.thaw(s)),
    "adjust": lambda m, s: (m, fl.adjust(s, 0.05)),
    "adjust one": lambda m, s: (m, fl.adjust(s, 0.02, where=".gain")),
    "another model": lambda m, s: (fl.fmap(lambda x: x + 1, m), s),
    "another parameter": lambda m, s: (fl.at(m, ".bias").apply(lambda x: x - 1), s),
    "another buffer": lambda m, s: (fl.at(m, ".seen").apply(lambda x: x - 1), s),
    "another state": lambda m, s: (m, fl.tree.clone(s)),
    "another moment": lambda m, s: (m, fl.at(s, ".gain").set(fl.tree.clone(s.gain))),
    "cast": lambda m, s: (fl.f64(m), fl.f64(s)),
    "cast back": lambda m, s: (fl.f32(m), fl.f32(s)),
    "move": lambda m, s: (fl.to_device(m, "cpu"), fl.to_device(s, "cpu")),
    "save": save_and_load,
    "carry": lambda m, s: (m, fl.setup(s.gain.rule, m, carry=s)),
    "in place": lambda m, s: (m.bias.data.add_(1), (m, s))[1],
    "untie": lambda m, s: (fl.at(m, ".again").apply(torch.clone), s),
}  # fmt: skip

steps = st.tuples(
    st.sampled_from(
        ["plain"] * 6 + ["none", "none at all", "assigned", "expanded", "transposed", "at both places"]
    ),
    st.booleans(),
)
programs = st.lists(st.one_of(steps, steps, steps, st.sampled_from(sorted(BETWEEN))), max_size=9)


def execute(program: list[Any], rule: Any) -> list[Any]:
    """The model and state after every step of a program, copied; an error by its text."""
    model: Any = Layer(0)
    state = fl.setup(rule, model)
    seen: list[Any] = []
    for t, what in enumerate([("plain", False), *program]):
        try:
            if isinstance(what, str):
                model, state = BETWEEN[what](model, state)
            else:
                model, state = fl.update(state, model, gradient_of(model, what[0], t), donate=what[1])
            seen.append((fl.tree.clone(model), fl.tree.clone(state)))
        except (ValueError, TypeError, RuntimeError) as error:
            return [*seen, str(error)]
    return seen


@pytest.mark.filterwarnings("ignore:update found no gradient")
@settings(max_examples=150, deadline=None)
@given(programs, st.sampled_from(RULES))
def test_any_program_gives_the_same_with_and_without_the_lane(program: list[Any], rule: Any) -> None:
    found = execute(program, rule)
    with without_lane():
        expected = execute(program, rule)
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a == b if isinstance(b, str) else equal(a, b)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.booleans()), max_size=8), st.sampled_from(RULES))
def test_two_runs_side_by_side_do_not_meet(order: list[tuple[str, bool]], rule: Any) -> None:
    def both() -> Any:
        runs = {k: (x, fl.setup(rule, x)) for k, x in {"a": pair(), "b": ones(pair())}.items()}
        for k, donate in order:
            model, state = runs[k]
            runs[k] = fl.update(state, model, fl.tree.scale(model, 0.1), donate=donate)
        return runs

    found = both()
    with without_lane():
        assert equal(found, both())


# Branches


@each_rule
@pytest.mark.parametrize("donate", [False, True], ids=["pure", "the last donated"])
def test_two_different_updates_from_one_state_are_both_right(rule: Any, donate: bool) -> None:
    def branches() -> list[Any]:
        model, state = stepped(rule, pair(), 2)
        grads = [ones(model), fl.tree.scale(ones(model), -2.0), ones(model)]
        first = fl.update(state, model, grads[0])
        second = fl.update(state, model, grads[1])
        third = fl.update(state, model, grads[2], donate=donate)
        return [first, second, third, fl.update(first[1], first[0], grads[0])]

    found = branches()
    with without_lane():
        expected = branches()
    for a, b in zip(found, expected, strict=True):
        assert equal(a, b)
    assert equal(found[0], found[2])


@each_rule
def test_an_abandoned_step_leaves_no_trace(rule: Any) -> None:
    """Looking ahead, as a line search does, and going on from the state before."""
    model, state = stepped(rule, pair())
    for _ in range(3):
        fl.update(state, model, ones(model))
    found = fl.update(state, model, ones(model))
    with without_lane():
        assert equal(found, fl.update(state, model, ones(model)))


@each_rule
def test_branches_share_no_memory(rule: Any) -> None:
    model, state = stepped(rule, pair(), 2)
    branches = [fl.update(state, model, ones(model)) for _ in range(2)]
    moved = [x for x in fl.fleaves((model, state, *branches)) if x.ndim]
    storages = [x.untyped_storage().data_ptr() for x in moved]
    assert len(set(storages)) == len(storages)
    before = fl.tree.clone(branches[1])
    fl.update(branches[0][1], branches[0][0], ones(model), donate=True)
    assert equal(before, branches[1])


@each_rule
def test_counters_that_were_read_keep_their_value(rule: Any) -> None:
    model, state = stepped(rule, pair(), 2)
    counters = [x for x in fl.fleaves(state) if x.ndim == 0]
    values = [x.clone() for x in counters]
    for donate in (False, True):
        model, state = fl.update(state, model, ones(model), donate=donate)
    assert all(torch.equal(x, v) for x, v in zip(counters, values, strict=True))


# What rides along


def network() -> Any:
    return fl.Chain(fl.Dense(2, 2), fl.BatchNorm(2))


def test_a_mode_that_was_pinned_between_steps_stays_pinned() -> None:
    def grads(m: Any) -> Any:
        return fl.gradient(lambda m: m(randn(4, 2)).square().sum(), m)

    model = network()
    model, state = fl.update(fl.setup(fl.Adam(), model), model, grads(model))
    pinned = fl.testmode(model)
    moved, _ = fl.update(state, pinned, grads(pinned))
    assert all(fl.training(x) is False for x in (moved, *moved.layers))
    with fl.mode("train"):
        assert not fl.training(moved.layers[1])
    free, _ = fl.update(state, model, grads(model))
    with fl.mode("train"):
        assert fl.training(free.layers[1])


def test_a_dict_keeps_the_order_of_its_keys() -> None:
    model, state = stepped(fl.Adam(), pair())
    turned = dict(reversed(model.items()))
    moved, _ = fl.update(state, turned, ones(turned))
    assert list(moved) == list(turned)


@fl.functor(children=("w",))
class Noted:
    """A weight, and notes that ride along."""

    def __init__(self, notes: Any) -> None:
        self.w, self.notes = torch.ones(2), notes


@pytest.mark.parametrize("notes", [["a"], {"k": 1}, (1, 2), 3.5])
def test_what_rides_along_with_a_node_is_that_of_the_model(notes: Any) -> None:
    model, state = stepped(fl.Adam(), Noted(notes))
    other = type(notes)(notes)
    model.notes = other
    moved, _ = fl.update(state, model, fl.gradient(lambda m: (m.w**2).sum(), model))
    assert moved.notes is other


# What stays alive


@each_rule
@pytest.mark.parametrize("donate", [False, True])
def test_no_old_model_or_state_is_kept_alive(rule: Any, donate: bool) -> None:
    model, state = stepped(rule, pair(), 2)
    old = [weakref.ref(x) for x in fl.fleaves((model, state)) if x.ndim]
    old += [weakref.ref(entry) for entry in state.values()]
    model, state = fl.update(state, model, ones(model), donate=donate)
    gc.collect()
    assert not [ref() for ref in old if ref() is not None]


@each_rule
def test_nothing_is_kept_alive_at_the_end(rule: Any) -> None:
    gc.collect()
    before = len(lane._lanes)
    model, state = stepped(rule, pair(), 3)
    last = [weakref.ref(x) for x in fl.fleaves((model, state))]
    last += [weakref.ref(entry) for entry in state.values()]
    del model, state
    gc.collect()
    assert not [ref() for ref in last if ref() is not None]
    assert len(lane._lanes) == before


@pytest.mark.parametrize("donate", [False, True])
def test_lanes_do_not_pile_up(donate: bool) -> None:
    gc.collect()
    model = pair()
    state, before = fl.setup(fl.Adam(), model), len(lane._lanes)
    for _ in range(50):
        model, state = fl.update(state, model, ones(model), donate=donate)
        assert len(lane._lanes) <= before + 2
    del model, state
    assert len(lane._lanes) == before


def test_states_that_are_kept_have_a_lane_each() -> None:
    model = pair()
    state = fl.setup(fl.Adam(0.1), model)
    history = [(model, state)]
    for _ in range(10):
        model, state = fl.update(state, model, ones(model))
        history.append((model, state))
    for k in (3, 7, 9):
        again = fl.update(history[k][1], history[k][0], ones(model))
        assert equal(again, history[k + 1])


# Errors


def wrong(which: str) -> Callable[[Any, Any], Any]:
    """A mistaken call on a model and its state."""
    calls: dict[str, Callable[[Any, Any], Any]] = {
        "shape": lambda m, s: fl.update(s, m, {**ones(m), "b": torch.ones(3)}),
        "dtype": lambda m, s: fl.update(s, m, fl.f64(ones(m))),
        "device": lambda m, s: fl.update(s, m, fl.to_device(ones(m), "meta")),
        "structure": lambda m, s: fl.update(s, m, [ones(m)]),
        "missing": lambda m, s: fl.update(s, m, {"a": torch.ones(3)}),
        "number": lambda m, s: fl.update(s, m, {**ones(m), "a": 1.0}),
        "assigned": lambda m, s: fl.update(s, m, {**ones(m), "a": fl.Assigned(torch.ones(3))}),
        "swapped": lambda m, s: fl.update(m, s, ones(m)),
        "all swapped": lambda m, s: fl.update(s, ones(m), m, donate=True),
        "pair as state": lambda m, s: fl.update((m, s), m, ones(m)),
        "pair as model": lambda m, s: fl.update(s, (m, s), ones(m)),
        "pair as gradients": lambda m, s: fl.update(s, m, (torch.ones(()), ones(m))),
        "model as gradients, donated": lambda m, s: fl.update(s, m, m, donate=True),
        "a part of the model as gradient, donated": lambda m, s: fl.update(
            s, m, {**ones(m), "a": m["a"][:]}, donate=True
        ),
        "moment as gradient, donated": lambda m, s: fl.update(
            s, m, {**ones(m), "a": s["a"].state.exp_avg}, donate=True
        ),
        "a cast model": lambda m, s: fl.update(s, fl.f64(m), fl.f64(ones(m))),
        "a moved state": lambda m, s: fl.update(fl.to_device(s, "meta"), m, ones(m)),
        "surgery": lambda m, s: fl.update(s, {**m, "c": torch.ones(1)}, {**ones(m), "c": None}),
        "an expanded parameter, donated": lambda m, s: fl.update(
            s, {**m, "a": torch.ones(1).expand(3)}, ones(m), donate=True
        ),
        "a parameter taken out": lambda m, s: fl.update(s, {**m, "b": "gone"}, ones(m)),
        "an unregistered object": lambda m, s: fl.update(s, m, {**ones(m), "b": torch.nn.Linear(1, 1)}),
    }
    return calls[which]


WRONG = [
    "shape", "dtype", "device", "structure", "missing", "number", "assigned", "swapped", "all swapped",
    "pair as state", "pair as model", "pair as gradients", "model as gradients, donated",
    "a part of the model as gradient, donated", "moment as gradient, donated", "a cast model",
    "a moved state", "surgery", "an expanded parameter, donated", "a parameter taken out",
    "an unregistered object",
]  # fmt: skip


def outcome(call: Callable[[Any, Any], Any], model: Any, state: Any) -> tuple[type, str]:
    try:
        return type(None), repr(call(model, state))
    except Exception as error:
        return type(error), str(error)


@pytest.mark.parametrize("which", WRONG)
@pytest.mark.parametrize("donated_before", [False, True])
def test_an_error_is_that_of_the_long_way(which: str, donated_before: bool) -> None:
    model, state = stepped(fl.Adam(0.1), pair())
    model, state = fl.update(state, model, ones(model), donate=donated_before)
    tensors = fl.fleaves((model, state))
    before = [(x.clone(), x._version) for x in tensors]
    found = outcome(wrong(which), model, state)
    if found[0] is not type(None):
        assert all(torch.equal(x, v) and x._version == n for x, (v, n) in zip(tensors, before, strict=True))
    else:
        model, state = stepped(fl.Adam(0.1), pair(), 2)
    with without_lane():
        assert found == outcome(wrong(which), model, state)


def test_a_parameter_that_surgery_replaced_by_none_is_passed_by() -> None:
    def run() -> Any:
        model, state = stepped(fl.Adam(0.1), pair())
        model = fl.at(model, "['b']").set(None)
        gc.collect()
        return fl.update(state, model, {"a": torch.ones(3), "b": None})

    with without_lane():
        expected = run()
    assert equal(run(), expected)


def test_an_old_model_after_a_donated_step_is_an_error() -> None:
    model, state = stepped(fl.Momentum(0.1), pair(), 2)
    after = fl.update(state, model, ones(model), donate=True)
    for arguments in ((state, model), (after[1], model), (state, after[0])):
        with pytest.raises(RuntimeError, match=r"fluxlike\.tree\.clone"):
            fl.update(*arguments, ones(after[0]))


def test_a_buffer_that_shares_memory_with_a_parameter_is_seen_also_when_it_is_put_in_later() -> None:
    model = {"w": torch.ones(3), "n": torch.zeros(3, dtype=torch.int32)}
    grads = {"w": torch.ones(3), "n": None}
    state = fl.setup(fl.Adam(), model)
    for _ in range(3):
        model, state = fl.update(state, model, grads, donate=True)
    model = {**model, "n": model["w"].view(torch.int32)}
    with pytest.raises(ValueError, match="shares memory with"):
        fl.update(state, model, grads, donate=True)


@pytest.mark.parametrize("with_lane", [True, False])
def test_inference_tensors_are_refused_outside_also_after_donated_steps_inside(with_lane: bool) -> None:
    with torch.inference_mode():
        model = pair()
        state = fl.setup(fl.Adam(), model)
        for _ in range(3):
            model, state = fl.update(state, model, ones(model), donate=True)
    context = contextlib.nullcontext() if with_lane else without_lane()
    with context, pytest.raises(ValueError, match=r"made under torch\.inference_mode"):
        fl.update(state, model, ones(pair()), donate=True)


# Inside transforms


def test_inside_a_transform_the_lane_is_not_taken() -> None:
    model, state = stepped(fl.Adam(0.1), pair())
    given_grads, taken = ones(model), Taken()

    def after(m: Any) -> Tensor:
        return fl.update(state, m, given_grads)[0]["a"].sum()

    with taken.patch:
        grads = fl.gradient(after, model)
        fl.gradient(lambda x: x.sum() * after(model), torch.ones(2))
        torch.vmap(lambda x: x + after(model))(torch.ones(2))
        assert torch.equal(grads["a"], torch.func.grad(after)(model)["a"])
    assert taken.count == 0
    assert torch.equal(grads["a"], torch.ones(3))


def moved_once(donate: bool) -> tuple[Any, Any]:
    model = {"a": torch.ones(3, 2), "b": torch.ones(5)}
    return fl.update(
        fl.setup(fl.Adam(0.1), model), model, {"a": torch.ones(3, 2), "b": torch.ones(5)}, donate=donate
    )


@pytest.mark.parametrize("donate", [False, True])
def test_other_memory_under_a_parameter_is_noticed(donate: bool) -> None:
    model, state = moved_once(donate)
    model["a"].data = torch.ones(60, 20)
    with pytest.raises(ValueError, match=r"\['a'\]"):
        fl.update(state, model, {"a": torch.ones(3, 2), "b": torch.ones(5)}, donate=donate)
    model["a"].data = torch.full((3, 2), 7.0)
    after, _ = fl.update(state, model, {"a": torch.ones(3, 2), "b": torch.ones(5)}, donate=donate)
    assert (after["a"] > 6.5).all()


def test_a_transposed_parameter_is_noticed() -> None:
    model, state = moved_once(False)
    model["a"].t_()
    with pytest.raises(ValueError, match=r"\['a'\]"):
        fl.update(state, model, {"a": torch.ones(3, 2), "b": torch.ones(5)})


def test_a_parameter_that_was_set_to_require_grad_moves_without_a_graph() -> None:
    model, state = stepped(fl.Adam(0.1), pair(), 2)
    model["a"].requires_grad_()
    moved, _ = fl.update(state, model, ones(model))
    assert moved["a"].grad_fn is None
    assert not moved["a"].requires_grad


def test_one_entry_of_a_state_does_not_keep_the_others_alive() -> None:
    _, state = moved_once(False)
    moment = weakref.ref(state["b"].state.exp_avg)
    first = state["a"]
    del state
    gc.collect()
    assert moment() is None
    assert first.state.exp_avg.shape == (3, 2)


def test_a_model_with_batchnorm_takes_the_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fl.Chain(fl.Dense(3, 4), fl.BatchNorm(4))
    state = fl.setup(fl.Adam(0.1), model)
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    taken = []
    step = Lane.step
    monkeypatch.setattr(Lane, "step", lambda *a: taken.append(step(*a)) or taken[-1])
    for _ in range(3):
        grads = fl.gradient(lambda m, x: m(x).square().mean(), model, x)
        model, state = fl.update(state, model, grads, donate=True)
    assert [t is not None for t in taken] == [True, True]
    assert not torch.equal(model.layers[1].running_mean, torch.zeros(4))
