"""`jit` with `donate`: memory that can't be given away, at the first call and at later ones."""

import numpy as np
import pytest
import torch

import fluxlike as fl

RECORDED_ALONE = True


def plus_one(model, x):
    return {"w": model["w"] + 1}, x * 2


def refused(f, *args, says):
    before = [x.clone() for x in fl.fleaves(args)]
    with pytest.raises(ValueError, match=says):
        f(*args)
    for x, kept in zip(fl.fleaves(args), before, strict=True):
        assert torch.equal(x, kept)


def test_a_leaf_that_is_in_another_argument_too_is_refused():
    w = torch.ones(2)
    f = fl.jit(lambda m, x: (m["w"] + x[0], x[0]), donate="m")
    refused(f, {"w": w}, [w], says=r"the argument m\['w'\] is donated and stands at x\[0\] too.*clone")


def overlapping():
    base = torch.zeros(6)
    return {"w": base[:4]}, base[2:]


def a_view():
    w = torch.zeros(4)
    return {"w": w}, w[:2]


def the_whole():
    w = torch.zeros(4)
    return {"w": w[:2]}, w


def expanded():
    return {"w": torch.zeros(1).expand(4)}, torch.ones(1)


def own_windows():
    return {"w": torch.zeros(5).unfold(0, 2, 1)}, torch.ones(1)


def of_numpy():
    return {"w": torch.from_numpy(np.zeros(4))}, torch.ones(1)


def shared_memory():
    return {"w": torch.zeros(4).share_memory_()}, torch.ones(1)


def made_in_inference_mode():
    with torch.inference_mode():
        return {"w": torch.zeros(4)}, torch.ones(1)


REFUSED = {
    "overlap": (overlapping, "shares memory with the argument"),
    "view": (a_view, "shares memory with the argument"),
    "whole": (the_whole, "shares memory with the argument"),
    "expanded": (expanded, "is expanded or overlaps itself"),
    "windows": (own_windows, "is expanded or overlaps itself"),
    "numpy": (of_numpy, "memory that torch does not own"),
    "shared memory": (shared_memory, "memory that torch does not own"),
    "inference": (made_in_inference_mode, "inference_mode"),
}


@pytest.mark.parametrize(("make", "says"), REFUSED.values(), ids=REFUSED)
def test_memory_that_can_t_be_written_over_is_refused_by_name(make, says):
    f = fl.jit(plus_one, donate=0)
    refused(f, *make(), says=says)
    new, _ = f({"w": torch.zeros(4)}, torch.ones(1))  # nothing is left broken
    assert new["w"].tolist() == [1, 1, 1, 1]


def test_the_refusal_names_the_path():
    with pytest.raises(
        ValueError, match=r"the argument model\['w'\] .*the argument x|the argument x .*model\['w'\]"
    ):
        fl.jit(plus_one, donate=0)(*a_view())


@pytest.mark.parametrize("array", [np.zeros(4), np.broadcast_to(np.zeros(1), (4,)), np.zeros(4)[::-1]])
def test_an_array_of_numpy_stays_as_it_is(array):
    f = fl.jit(plus_one, donate=0)
    for _ in range(2):
        model, x = f({"w": array}, torch.ones(1))
        assert model["w"].tolist() == [1, 1, 1, 1]
        assert x.tolist() == [2]
        assert array.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(("make", "says"), REFUSED.values(), ids=REFUSED)
def test_later_calls_are_checked_as_the_first(make, says):
    f = fl.jit(plus_one, donate=0)
    model, x = {"w": torch.zeros(4)}, torch.ones(1)
    for _ in range(3):
        model, _ = f(model, x)
    refused(f, *make(), says=says)
    model, _ = f(model, x)
    assert model["w"].tolist() == [4, 4, 4, 4]


def test_a_view_of_what_was_returned_is_refused_at_the_next_call():
    f = fl.jit(plus_one, donate=0)
    model, x = {"w": torch.zeros(4)}, torch.ones(2)
    for _ in range(2):
        model, _ = f(model, x)
    refused(f, model, model["w"][:2], says="shares memory")
    refused(f, model, model["w"].detach()[2:], says="shares memory")
    model, _ = f(model, torch.ones(2))
    assert model["w"].tolist() == [3, 3, 3, 3]


def test_memory_that_starts_before_what_was_returned_and_reaches_into_it_is_refused():
    f = fl.jit(plus_one, donate=0)
    memory = torch.zeros(6)
    model, other = {"w": memory[2:].detach()}, memory[:4].detach()
    for _ in range(2):
        model, _ = f(model, torch.ones(4))
    refused(f, model, other, says="shares memory")


def test_a_donated_tensor_that_is_closed_over_is_refused():
    w = torch.ones(2)
    f = fl.jit(lambda x: x + w, donate=0)
    with pytest.raises(
        ValueError,
        match=r"shares memory with a tensor that the function closes over|function closes over shares",
    ):
        f(w)
    assert w.tolist() == [1, 1]
    assert f(torch.zeros(2)).tolist() == [1, 1]


def test_what_was_donated_can_t_be_donated_again():
    f = fl.jit(plus_one, donate=0)
    model = {"w": torch.zeros(4)}
    f(model, torch.ones(1))
    with pytest.raises(RuntimeError, match=r"donated.*clone"):
        f(model, torch.ones(1))
