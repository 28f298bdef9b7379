"""What `update` refuses, and how it names the place."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import pytest
import torch

import fluxlike as fl


def model() -> dict[str, Any]:
    return {"layers": [torch.ones(3), torch.ones(2, 2)], "name": "text", "n": torch.tensor(1)}


def gradients() -> dict[str, Any]:
    return {"layers": [torch.ones(3), torch.ones(2, 2)], "name": None, "n": None}


def refuse(grads: Any, message: str) -> None:
    state = fl.setup(fl.Adam(), model())
    for step in (fl.update, fl.steps):
        with pytest.raises(ValueError, match=message):
            step(state, model(), grads)


# Structure


@pytest.mark.parametrize(
    ("grads", "message"),
    [
        ({"layers": [torch.ones(3)], "name": None, "n": None}, r"at \['layers'\], grads lacks 1"),
        (
            {"layers": [torch.ones(3), None, None], "name": None, "n": None},
            r"at \['layers'\], grads has 2, which the model lacks",
        ),
        (
            {"layers": (torch.ones(3), None), "name": None, "n": None},
            r"at \['layers'\], grads has a tuple, the model has a list",
        ),
        ({"layers": [torch.ones(3), None], "name": None}, r"at the root, grads lacks 'n'"),
        (torch.ones(3), "at the root, grads has a leaf, the model has a dict"),
        (None, "at the root, grads has a leaf, the model has a dict"),
        (
            {"layers": [[torch.ones(3)], None], "name": None, "n": None},
            r"at \['layers'\]\[0\], grads has a list, the model has a leaf",
        ),
    ],
)
def test_gradients_of_another_structure_name_the_first_difference(grads: Any, message: str) -> None:
    refuse(grads, f"grads and the model differ in structure: {message}")


def test_a_part_of_the_gradient_is_told_that_gradient_returns_the_tree_itself() -> None:
    model = fl.Chain(fl.Dense(3, 2), fl.Chain(fl.LayerNorm(2)))
    state = fl.setup(fl.Descent(), model)
    grads = fl.gradient(lambda m: m(torch.ones(1, 3)).sum(), model)
    for taken, place in ((grads[0], r"\.layers\[0\]"), (grads[1][0], r"\.layers\[1\]\.layers\[0\]")):
        with pytest.raises(
            ValueError,
            match=rf"it fits the model's {place}: gradient returns the tree itself, .* without \[0\]$",
        ):
            fl.update(state, model, taken)
    with pytest.raises(ValueError, match=r"grads has a Scale, the model has a Chain$"):
        fl.update(state, model, fl.Scale(3))


def test_a_tuple_of_another_length_is_not_truncated() -> None:
    state = fl.setup(fl.Descent(), (torch.ones(1), torch.ones(1)))
    with pytest.raises(ValueError, match="at the root, grads has 2, which the model lacks"):
        fl.update(state, (torch.ones(1), torch.ones(1)), (torch.ones(1),) * 3)


def test_a_state_of_another_model_names_the_first_difference() -> None:
    state = fl.setup(fl.Adam(), fl.Chain(fl.Dense(3, 2)))
    longer = fl.Chain(fl.Dense(3, 2), fl.Dense(2, 1))
    with pytest.raises(
        ValueError, match=r"state and the model differ in structure: at \.layers, state lacks 1"
    ):
        fl.update(state, longer, fl.gradient(lambda m: m.layers[0].weight.sum(), longer))


def test_gradients_of_another_class_are_refused() -> None:
    class A(NamedTuple):
        w: Any

    class B(NamedTuple):
        w: Any

    state = fl.setup(fl.Adam(), A(torch.ones(1)))
    with pytest.raises(ValueError, match=r"at the root, grads has a .*B, the model has a .*A"):
        fl.update(state, A(torch.ones(1)), B(torch.ones(1)))


# Single gradients


def with_second(g: Any) -> dict[str, Any]:
    return {**gradients(), "layers": [torch.ones(3), g]}


@pytest.mark.parametrize("shape", [(2,), (1, 2), (), (2, 2, 1), (4,)])
def test_a_gradient_of_another_shape_is_not_broadcast(shape: tuple[int, ...]) -> None:
    found = rf"the gradient has the shape {re.escape(str(shape))} and the parameter \(2, 2\)"
    refuse(
        with_second(torch.ones(shape)),
        rf"at \['layers'\]\[1\], {found}; nothing is broadcast: .* of another model",
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64, torch.complex64])
def test_a_gradient_of_another_dtype_is_an_error(dtype: torch.dtype) -> None:
    refuse(
        with_second(torch.ones(2, 2, dtype=dtype)),
        rf"at \['layers'\]\[1\], the gradient has the dtype {dtype} and the parameter torch\.float32",
    )


def test_a_gradient_on_another_device_is_an_error() -> None:
    refuse(
        with_second(torch.ones(2, 2, device="meta")),
        r"at \['layers'\]\[1\], the gradient has the device meta and the parameter cpu.*fluxlike\.to_device",
    )


@pytest.mark.parametrize("g", [0.0, 1, "text"])
def test_a_gradient_that_is_no_tensor_is_shown(g: Any) -> None:
    refuse(
        with_second(g),
        rf"at \['layers'\]\[1\], grads hold {g!r} of {type(g).__name__}; write a tensor or None",
    )


def test_an_assigned_parameter_is_an_error() -> None:
    refuse(
        with_second(fl.Assigned(torch.ones(2, 2))), r"\['layers'\]\[1\] is a parameter, and grads assign it"
    )


def test_a_gradient_of_a_buffer_is_an_error() -> None:
    refuse(
        {**gradients(), "n": torch.tensor(1)}, r"grads hold a tensor at \['n'\], but the model has a buffer"
    )


def test_a_gradient_of_a_constant_is_an_error() -> None:
    refuse(
        {**gradients(), "name": torch.ones(1)},
        r"grads hold a tensor at \['name'\], but .* the constant 'text'",
    )


def test_an_assignment_to_a_constant_is_an_error() -> None:
    refuse({**gradients(), "name": fl.Assigned(torch.ones(1))}, r"\['name'\] is assigned .*'text'")


def test_a_frozen_parameter_still_has_its_gradient_checked() -> None:
    state = fl.freeze(fl.setup(fl.Adam(), model()))
    with pytest.raises(ValueError, match=r"at \['layers'\]\[1\], the gradient has the shape \(5,\)"):
        fl.update(state, model(), with_second(torch.ones(5)))


def test_the_root_is_named_where_the_model_is_one_tensor() -> None:
    with pytest.raises(ValueError, match=r"at the root, the gradient has the shape \(2,\)"):
        fl.update(fl.setup(fl.Adam(), torch.ones(3)), torch.ones(3), torch.ones(2))


# The wrong argument


def test_a_swapped_pair_shows_the_right_line() -> None:
    state = fl.setup(fl.Adam(), model())
    for step in (fl.update, fl.steps):
        with pytest.raises(TypeError, match=r"swapped: write model, state = update\(state, model, grads\)"):
            step(model(), state, gradients())


def test_a_swapped_pair_without_moments_shows_the_right_line() -> None:
    state = fl.setup(fl.Descent(), model())
    with pytest.raises(TypeError, match=r"swapped: write model, state = update\(state, model, grads\)"):
        fl.update(model(), state, gradients())


def test_a_model_in_the_place_of_the_state_says_to_call_setup() -> None:
    with pytest.raises(TypeError, match=r"no state of an optimiser: write state = setup\(rule, model\)"):
        fl.update(model(), model(), gradients())


def test_a_swapped_result_of_update_shows_the_right_line() -> None:
    model_, state = fl.update(fl.setup(fl.Adam(), model()), model(), gradients())
    with pytest.raises(TypeError, match="swapped"):
        fl.update(model_, state, gradients())


def test_a_rule_in_the_place_of_the_state_is_an_error() -> None:
    with pytest.raises((TypeError, ValueError), match=r"setup\(rule, model\)|state and the model differ"):
        fl.update(fl.Adam(), model(), gradients())


# State and model that have drifted apart


def test_a_state_on_another_device_says_to_move_it() -> None:
    state = fl.to_device(fl.setup(fl.Adam(), model()), "meta")
    message = (
        r"Adam at \['layers'\]\[0\]: the state is on meta, .* on cpu; .*fluxlike\.to_device\(state, 'cpu'\)"
    )
    with pytest.raises(ValueError, match=message):
        fl.update(state, model(), gradients())


def test_the_state_of_a_chain_on_another_device_says_to_move_it() -> None:
    rule = fl.OptimiserChain(fl.ClipNorm(1.0), fl.Adam())
    state = fl.to_device(fl.setup(rule, model()), "meta")
    with pytest.raises(ValueError, match=r"the state of \['layers'\]\[0\] is on meta"):
        fl.update(state, model(), gradients())


def test_a_parameter_that_surgery_put_in_says_to_call_setup_again() -> None:
    state = fl.setup(fl.Adam(), model())
    edited = fl.at(model(), "['name']").set(torch.ones(2))
    grads = {**gradients(), "name": torch.ones(2)}
    message = r"tensor at \['name'\], but the state holds nothing for it; .*setup\(rule, model, carry=state\)"
    with pytest.raises(ValueError, match=message):
        fl.update(state, edited, grads)


def test_a_parameter_that_surgery_resized_names_the_moments() -> None:
    state = fl.setup(fl.Momentum(), model())
    edited = fl.at(model(), "['layers'][0]").set(torch.ones(5))
    grads = {**gradients(), "layers": [torch.ones(5), torch.ones(2, 2)]}
    with pytest.raises(ValueError, match=r"\['layers'\]\[0\]"):
        fl.update(state, edited, grads)


def test_a_parameter_that_surgery_took_out_says_to_call_setup_again() -> None:
    state = fl.setup(fl.Adam(), model())
    edited = fl.at(model(), "['layers'][0]").set("gone")
    with pytest.raises(ValueError, match=r"at \['layers'\]\[0\], .*'gone'; after surgery, call setup"):
        fl.update(state, edited, gradients())


def test_tied_places_that_were_adjusted_apart_are_both_named() -> None:
    w = torch.ones(2)
    tied = {"a": w, "b": w}
    state = fl.adjust(fl.setup(fl.Adam(), tied), 0.5, where="['b']")
    with pytest.raises(
        ValueError, match=r"\['a'\] and \['b'\] are tied, but the state has the rules .*alike"
    ):
        fl.update(state, tied, {"a": w, "b": None})


def test_an_untied_parameter_moves_by_its_own_gradient() -> None:
    w = torch.ones(2)
    tied = {"a": w, "b": w}
    state = fl.setup(fl.Momentum(1.0), tied)
    apart = fl.at(tied, "['b']").set(torch.zeros(2))
    moved, after = fl.update(state, apart, {"a": torch.ones(2), "b": torch.full((2,), 2.0)})
    assert torch.equal(moved["a"], torch.zeros(2))
    assert torch.equal(moved["b"], torch.full((2,), -2.0))
    assert torch.equal(after["b"].state, torch.full((2,), 2.0))


def test_a_state_of_another_dtype_than_the_cast_model_is_named():
    model = {"w": torch.ones(2)}
    state = fl.setup(fl.Adam(), model)
    grads = {"w": torch.ones(2, dtype=torch.float64)}
    with pytest.raises(
        ValueError, match=r"Adam at \['w'\]: the state is of torch.float32, the parameter of torch.float64"
    ):
        fl.update(state, fl.f64(model), grads)


# Results that were taken in the other order


@pytest.mark.parametrize("rule", [fl.Descent(), fl.Adam()], ids=["without moments", "with moments"])
def test_a_state_in_the_place_of_the_model_says_in_which_order_update_returns(rule: Any) -> None:
    net, x = fl.Chain(fl.Dense(3, 2)), torch.ones(1, 3)
    grads = fl.gradient(lambda m: m(x).sum(), net)
    swapped, _ = fl.update(fl.setup(rule, net), net, grads)[::-1]
    order = r"update returns \(model, state\), in this order"
    with pytest.raises(TypeError, match=rf"argument 0 is the state of an optimiser: {order}"):
        fl.gradient(lambda m: m(x).sum(), swapped)
    with pytest.raises(TypeError, match=rf"the model is the state of an optimiser: {order}"):
        fl.setup(rule, swapped)
    with pytest.raises(AttributeError, match=rf"a ParamState, .* has no 'shape'; .*{order}"):
        swapped(x)


def test_the_state_of_a_wrapped_module_says_that_it_is_not_the_module() -> None:
    state = fl.setup(fl.Adam(), fl.from_torch(torch.nn.Linear(3, 2)))
    with pytest.raises(TypeError, match=r"this Linear is the state of an optimiser, .*\(model, state\)"):
        state(torch.ones(1, 3))


# A loss that does not depend on the model


def test_no_gradient_at_all_warns_that_nothing_is_trained() -> None:
    net = model()
    state = fl.setup(fl.Adam(), net)
    with pytest.warns(
        UserWarning, match=r"found no gradient: every one is None, so nothing is trained"
    ) as found:
        fl.update(state, net, fl.gradient(lambda m: net["layers"][0].sum(), net))
    assert found[0].filename == __file__


def test_no_warning_where_something_moves_or_is_meant_to_stay() -> None:
    net, nothing = model(), fl.fmap(lambda x: None, {**gradients(), "n": None})
    state = fl.setup(fl.Adam(), net)
    fl.update(fl.freeze(state), net, nothing)
    fl.update(state, net, {**nothing, "layers": [torch.ones(3), None]})
    fl.update(fl.freeze(state), net, {**nothing, "n": fl.Assigned(torch.tensor(2))})
    fl.update(fl.freeze(state, "['layers'][0]"), net, {**nothing, "layers": [torch.ones(3), None]})


@pytest.mark.parametrize(
    "ended", [torch.detach, lambda z: z.argmax(1).float(), lambda z: torch.tensor(z.sum().item())]
)
def test_buffers_that_moved_are_no_gradients(ended: Any) -> None:
    net = fl.Chain(fl.Dense(4, 8, fl.relu), fl.BatchNorm(8), fl.Dropout(0.1), fl.Dense(8, 3))
    grads = fl.gradient(lambda m: ended(m(torch.ones(5, 4))).sum(), net)
    with pytest.warns(UserWarning, match="found no gradient"):
        moved, _ = fl.update(fl.setup(fl.Adam(), net), net, grads)
    assert not torch.equal(moved.layers[1].running_mean, net.layers[1].running_mean)


def test_gradients_of_a_model_of_other_sizes_name_a_parameter_before_a_buffer() -> None:
    net, other = (fl.Chain(fl.Dense(4, n), fl.BatchNorm(n)) for n in (8, 17))
    grads = fl.gradient(lambda m: m(torch.ones(5, 4)).sum(), other)
    with pytest.raises(ValueError, match=r"at \.layers\[0\]\.weight, .* of another model\?"):
        fl.update(fl.setup(fl.Adam(), net), net, grads)


# A list of parameters, or what gives them one by one, in the place of a tree


def linear() -> tuple[torch.nn.Module, Any, list[torch.Tensor]]:
    """A module of torch, the state of a list of its parameters, and gradients of that list."""
    module = torch.nn.Linear(3, 2)
    return module, fl.setup(fl.Adam(), list(module.parameters())), [torch.ones(2, 3), torch.ones(2)]


@pytest.mark.parametrize("step", [fl.update, fl.steps])
def test_what_can_be_read_once_is_an_error_that_names_a_dict(step: Any) -> None:
    module, state, grads = linear()
    text = "a generator, which can be read once; .*dict\\(module\\.named_parameters\\(\\)\\)"
    with pytest.raises(TypeError, match=f"the model is {text}"):
        step(state, module.parameters(), grads)
    with pytest.raises(TypeError, match="grads are a generator, which can be read once; write list"):
        step(state, list(module.parameters()), (g for g in grads))


@pytest.mark.parametrize("step", [fl.update, fl.steps])
def test_the_state_of_a_list_of_parameters_says_that_it_is_not_that_of_the_model(step: Any) -> None:
    model = fl.Chain(fl.Dense(3, 2))
    grads = fl.tree.zeros_like(model)
    with pytest.raises(
        ValueError, match=r"state is that of a list of parameters.*write state = setup\(rule, model\)"
    ):
        step(fl.setup(fl.Adam(), fl.trainables(model)), model, grads)
    with pytest.raises(ValueError, match=r"the model is a list of parameters.*give the whole model"):
        step(fl.setup(fl.Adam(), model), fl.trainables(model), grads)


def test_gradients_of_torch_for_a_list_say_to_make_a_list_of_them() -> None:
    module, state, grads = linear()
    with pytest.raises(ValueError, match=r"grads has a tuple, the model has a list; write list\(grads\)"):
        fl.update(state, list(module.parameters()), tuple(grads))


@pytest.mark.parametrize("grads", [torch.tensor(0.5), 0.5], ids=["tensor", "number"])
def test_a_loss_in_the_place_of_the_gradients_says_what_withgradient_returns(grads: Any) -> None:
    refuse(grads, r"at the root, grads has a leaf.*value, grads = withgradient\(loss, model, x, y\)")


def test_none_in_the_place_of_the_state_says_to_call_setup() -> None:
    with pytest.raises(
        ValueError, match=r"state has a leaf.*; the state holds no parameter: .*setup\(rule, model\)"
    ):
        fl.update(None, model(), gradients())
