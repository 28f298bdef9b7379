"""`pushforward` gives the value and its derivative in one direction, on trees."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import fluxlike as fl


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_it_is_the_jvp_of_torch() -> None:
    x, v, w = randn(4), randn(4, seed=1), randn(3, 4, seed=2)
    f = lambda x: ((w @ x).sin(), x.prod())  # noqa: E731
    assert_close(fl.pushforward(f, x, v=v), torch.func.jvp(f, (x,), (v,)))


def test_models_with_constants_ties_and_gaps_are_arguments() -> None:
    w = torch.tensor([1.0, 2.0])
    model = {"w": w, "tied": w, "still": torch.ones(2), "count": torch.tensor(3), "name": "n"}
    v = {"w": None, "tied": torch.tensor([1.0, 0.0]), "still": None, "count": None, "name": None}
    value, tangent = fl.pushforward(
        lambda m: (m["w"] * m["tied"], m["still"], m["count"], m["name"]), model, v=v
    )
    assert torch.equal(value[0], torch.tensor([1.0, 4.0]))
    assert value[3] == "n"
    assert torch.equal(tangent[0], torch.tensor([2.0, 0.0]))
    assert tangent[1:] == (None, None, None)


def test_a_gradient_is_a_direction() -> None:
    model, x = fl.Chain(fl.Dense(2, 3, fl.tanh), fl.BatchNorm(3)), torch.randn(5, 2)
    loss = lambda m: m(x).square().sum()  # noqa: E731
    with fl.mode("train"):
        v = fl.gradient(loss, model)
        slope = fl.pushforward(loss, model, v=v)[1]
    assert_close(slope, fl.tree.dot(v, v), rtol=1e-4, atol=1e-4)


def test_a_direction_made_by_fmap_has_its_ties_and_constants() -> None:
    layer = fl.Dense(2, 2, fl.tanh)
    model = fl.Chain(layer, layer)
    v = fl.fmap(torch.ones_like, model)
    tangent = fl.pushforward(lambda m: m(torch.ones(1, 2)), model, v=v)[1]
    flat, rebuild = fl.destructure(model)
    expected = torch.func.jvp(lambda p: rebuild(p)(torch.ones(1, 2)), (flat,), (torch.ones_like(flat),))[1]
    assert_close(tangent, expected)


def test_several_arguments_have_a_tuple_of_directions() -> None:
    f = lambda x, y, z: x * y * z  # noqa: E731
    value, tangent = fl.pushforward(f, 2.0, torch.tensor(3.0), 5.0, v=(1.0, None), argnums=(0, 2))
    assert (value, tangent) == (30, 15)


def test_an_output_that_the_direction_does_not_reach_is_none() -> None:
    out = fl.pushforward(lambda x: (x, torch.ones(2), x.detach(), 0 * x), torch.ones(2), v=torch.ones(2))[1]
    assert out[1] is None
    assert out[2] is None
    assert torch.equal(out[3], torch.zeros(2))


def test_outermost_nothing_carries_a_graph() -> None:
    p = torch.ones(2, requires_grad=True)
    value, tangent = fl.pushforward(lambda x: x * p, torch.ones(2, requires_grad=True), v=torch.ones(2))
    assert not value.requires_grad
    assert not tangent.requires_grad


def test_it_is_differentiable_by_the_direction() -> None:
    x = randn(3)
    f = lambda v: fl.pushforward(torch.sin, x, v=v)[1].pow(2).sum()  # noqa: E731
    assert_close(fl.gradient(f, x), 2 * x.cos() ** 2 * x)
    units = torch.eye(3, dtype=x.dtype)
    assert_close(fl.vmap(lambda v: fl.pushforward(torch.sin, x, v=v)[1])(units), torch.diag(x.cos()))


def test_layers_are_in_the_mode_around_it() -> None:
    seen = []
    model = fl.Chain(fl.Dense(1, 1), lambda x: (seen.append(fl.training()), x)[1])
    push = lambda m: fl.pushforward(lambda m: m(torch.ones(1, 1)), m, v=m)[1].sum()  # noqa: E731
    push(model)
    fl.gradient(push, model)
    with fl.mode("train"):
        push(model)
    assert seen == [False, True, True]


def test_a_key_decides_what_is_drawn() -> None:
    f = lambda x: x * fl.random.uniform(x.shape)  # noqa: E731
    with fl.seeded(fl.Key(0)):
        value, tangent = fl.pushforward(f, torch.ones(5), v=torch.ones(5))
    assert torch.equal(value, tangent)


def test_it_works_under_no_grad() -> None:
    with torch.no_grad():
        assert fl.pushforward(torch.exp, torch.zeros(()), v=1.0)[1] == 1


def test_threads_push_at_the_same_time() -> None:
    found: dict[int, Any] = {}
    ready = threading.Barrier(4)

    def work(n: int) -> None:
        ready.wait()
        for _ in range(20):
            x = torch.full((50,), float(n))
            found[n] = fl.pushforward(lambda x: fl.pushforward(lambda y: y**3, x, v=x)[1], x, v=x)[1][
                0
            ].item()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(1, 5)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert found == {n: pytest.approx(9.0 * n**3) for n in range(1, 5)}


# Errors


@pytest.mark.parametrize(
    ("v", "error", "message"),
    [
        ({"w": None, "t": None}, ValueError, "v holds no tangent of a parameter"),
        (
            {"w": torch.ones(3), "t": None},
            ValueError,
            r"\['w'\] of v has the shape \(3,\), the argument \(2,\)",
        ),
        ({"w": torch.ones(2).double(), "t": None}, ValueError, r"of torch\.float64 on cpu.*t\.to\(x\)"),
        ({"w": "x", "t": None}, TypeError, r"\['w'\] of v is 'x'; give a tensor of shape \(2,\)"),
        ({"w": torch.ones(2), "t": torch.ones(2)}, ValueError, "second tangent of a tied parameter"),
        ({"w": torch.ones(2)}, ValueError, "v lacks 't', which argument 0 has"),
    ],
)
def test_a_direction_that_does_not_fit_is_an_error(v: Any, error: type, message: str) -> None:
    w = torch.ones(2)
    with pytest.raises(error, match=message):
        fl.pushforward(lambda m: m["w"] * m["t"], {"w": w, "t": w}, v=v)


def test_directions_of_several_arguments_that_are_no_tuple_are_an_error() -> None:
    with pytest.raises(ValueError, match="for 2 argnums give a tuple of 2"):
        fl.pushforward(torch.mul, 1.0, 2.0, v=1.0, argnums=(0, 1))


def test_an_operation_without_forward_mode_is_named_with_a_way_out() -> None:
    x = randn(3, 4)
    f = lambda x: torch.cdist(x, x.detach() + 1, p=1.5)  # noqa: E731
    with pytest.raises(
        NotImplementedError, match=r"no forward mode for _cdist_forward.*two|Two reverse passes"
    ):
        fl.pushforward(f, x, v=x)


def test_the_other_checks_are_those_of_pullback() -> None:
    with pytest.raises(ValueError, match="pushforward needs a function that returns a floating"):
        fl.pushforward(lambda x: 3, torch.ones(1), v=torch.ones(1))
    with pytest.raises(ValueError, match="of argument 0 was changed in place"):
        fl.pushforward(
            lambda m: m["b"].add_(m["w"]),
            {"w": torch.ones(1), "b": torch.ones(1)},
            v={"w": torch.ones(1), "b": None},
        )
    with torch.inference_mode(), pytest.raises(RuntimeError, match="pushforward can't work under"):
        fl.pushforward(torch.exp, 2.0, v=1.0)
