"""`jit` with `donate`: the same numbers, memory that is used again, and what stays."""

import gc
import weakref

import pytest
import torch

import fluxlike as fl

D = torch.float64


def randn(*shape, seed=0, dtype=D):
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed)).to(dtype)


def mlp(seed=0):
    with fl.seeded(fl.Key(seed)):
        return fl.f64(fl.Chain(fl.Dense(3, 4, fl.tanh), fl.BatchNorm(4), fl.Dense(4, 2)))


def step(model, state, x):
    value, grads = fl.withgradient(lambda m: (m(x) - 1).square().mean(), model)
    return *fl.update(state, model, grads), value


def memory(tree):
    return [x.data_ptr() for x in fl.fleaves(tree) if x.ndim]


def close(a, b):
    return fl.tree.allclose(a, b, rtol=1e-10, atol=1e-12)


def plus_one(model, x):
    return {"w": model["w"] + 1}, x * 2


def test_numbers_are_those_of_pure_steps_in_the_same_memory():
    model = mlp()
    state = fl.setup(fl.Adam(1e-2), model)
    pure = model, state
    donated = fl.tree.clone(pure)
    places = memory(donated[0]), memory(donated[1])
    jitted = fl.jit(step, donate=(0, 1))
    for i in range(4):
        x = randn(5, 3, seed=i)
        *pure, value = step(*pure, x)
        *donated, found = jitted(*donated, x)
        assert torch.allclose(value, found)
        assert (memory(donated[0]), memory(donated[1])) == places
    assert close(pure, donated)
    assert jitted.cache_info().traces == 1


def test_any_use_of_what_was_donated_names_clone():
    model = mlp()
    state = fl.setup(fl.Momentum(0.1), model)
    best, view = model, {"w": model.layers[0].weight}
    new, _, _ = fl.jit(step, donate=(0, 1))(model, state, randn(5, 3))
    for use in (
        lambda: best(randn(5, 3)),
        lambda: view["w"] + 1,
        lambda: model.layers[0].weight.sum(),
        lambda: (
            state.layers[0].weight.state.mean()
            if hasattr(state.layers[0].weight.state, "mean")
            else best.layers[2].bias + 1
        ),
        lambda: fl.jit(lambda m: fl.fmap(lambda w: w * 2, m))(best),
        lambda: fl.gradient(lambda m: m(randn(5, 3)).sum(), best),
    ):
        with pytest.raises(RuntimeError, match=r"donated.*fluxlike\.tree\.clone"):
            use()
    assert new(randn(5, 3)).shape == (5, 2)


def test_what_is_not_rewritten_stays_valid():
    model = {
        "w": randn(2),
        "frozen": randn(2, seed=1),
        "unused": randn(2, seed=2),
        "n": torch.tensor(3),
        "name": "a",
    }
    state = fl.freeze(fl.setup(fl.Adam(), model), lambda s: s["frozen"])

    def advance(model, state):
        grads = fl.gradient(lambda m: (m["w"] * m["frozen"]).sum(), model)
        return fl.update(state, model, grads)

    new, new_state = fl.jit(advance, donate=(0, 1))(model, state)
    for name in ("frozen", "unused", "n"):
        assert new[name] is model[name]
        assert model[name].sum().isfinite()
    assert state["unused"].state is not None
    assert (
        new_state["unused"].state[0].sum().isfinite()
        if isinstance(new_state["unused"].state, tuple)
        else True
    )
    with pytest.raises(RuntimeError, match="donated"):
        model["w"] + 1


def test_numbers_without_axes_are_not_written_over():
    state = {"step": torch.tensor(1.0), "w": torch.ones(2)}
    new = fl.jit(lambda s: fl.fmap(lambda x: x + 1, s), donate=0)(state)
    assert state["step"].item() == 1
    assert new["step"].item() == 2


def test_ties_are_donated_once_and_stay_tied():
    w = randn(3)
    model = {"a": w, "b": [w], "c": randn(3, seed=1)}
    expected = w + 1
    f = fl.jit(lambda m: fl.fmap(lambda x: x + 1, m), donate=0)
    place = w.data_ptr()
    for i in range(1, 3):
        model = f(model)
        assert model["a"] is model["b"][0]
        assert model["a"].data_ptr() == place
        assert torch.allclose(model["a"], expected + i - 1)


def test_a_tensor_given_to_two_donated_arguments():
    w = torch.ones(2)
    a, b = fl.jit(lambda a, b: (a + b, a * 3), donate=(0, 1))(w, w)
    assert a.tolist() == [2, 2]
    assert b.tolist() == [3, 3]
    assert a.data_ptr() != b.data_ptr()


def test_donated_parameters_of_torch_are_left_alone():
    module = torch.nn.Linear(3, 2)
    model = dict(module.named_parameters())
    before = fl.tree.clone({k: v.detach() for k, v in model.items()})
    state = fl.setup(fl.Descent(0.5), model)
    f = fl.jit(
        lambda m, s: fl.update(s, m, fl.gradient(lambda m: m["weight"].sum() + m["bias"].sum(), m)),
        donate=(0, 1),
    )
    new, state = f(model, state)
    assert torch.equal(module.weight, before["weight"])
    assert torch.allclose(new["weight"], before["weight"] - 0.5)
    new, _ = f(new, state)  # from now on plain tensors
    assert torch.allclose(new["weight"], before["weight"] - 1)
    assert torch.equal(module.weight, before["weight"])


def test_a_leaf_of_autograd_is_left_alone():
    x = torch.ones(2, requires_grad=True)
    out = fl.jit(lambda x: x + 1, donate=0)(x)
    assert out.tolist() == [2, 2]
    assert x.tolist() == [1, 1]
    assert x.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.complex64])
@pytest.mark.filterwarnings("ignore:Torchinductor does not support code generation for complex")
def test_other_dtypes(dtype):
    model = {"w": randn(4, 3).to(dtype), "b": randn(3).to(dtype)}
    grads = {"w": torch.ones(4, 3, dtype=dtype), "b": torch.ones(3, dtype=dtype)}
    state = fl.setup(fl.Adam(0.1), model)
    expected, _ = fl.update(state, model, grads)
    place = model["w"].data_ptr()
    new, _new_state = fl.jit(fl.update, donate=(0, 1))(state, model, grads)
    assert new["w"].dtype == dtype
    assert new["w"].data_ptr() == place
    assert fl.tree.allclose(new, expected, rtol=1e-2 if dtype.itemsize == 2 else 1e-5)


# Functions other than update


OWN = {
    "add": (lambda x: x + 1, True),
    "same place in a tree": (lambda x: {"a": x * 2, "b": x.sum()}, True),
    "transposed": (lambda x: x.T * 1, True),
    "transposed view": (lambda x: x.T, True),
    "copy": (lambda x: x.clone(), True),
    "flipped": (lambda x: x.flip(0), True),
    "rolled": (lambda x: x.roll(1, 0) + x.roll(-1, 1), True),
    "product": (lambda x: x @ x, True),
    "running sum": (lambda x: x.cumsum(0) + x.sum(), True),
    "softmax": (lambda x: x.softmax(0), True),
    "sorted": (lambda x: x.sort(0)[0], True),
    "triangle": (lambda x: x.tril() + x.triu().T, True),
    "indexed": (lambda x: x[torch.tensor([2, 0, 1])] - x[[0]], True),
    "constant": (lambda x: torch.ones(3, 3, dtype=D), True),
    "shape": (lambda x: x.view(-1), False),
    "dtype": (lambda x: x.float(), False),
    "sum": (lambda x: x.sum(0), False),
    "view of itself": (lambda x: x[:2], False),
    "nothing": (lambda x: 3, False),
    "passed through": (lambda x: x, False),
}


@pytest.mark.parametrize(("f", "reused"), OWN.values(), ids=OWN)
def test_a_function_of_one_s_own(f, reused):
    jitted = fl.jit(f, donate=0)
    for i in range(2):
        x = randn(3, 3, seed=i)
        kept, place = x.clone(), x.data_ptr()
        out, expected = jitted(x), f(kept)
        for found, wanted in zip(fl.fleaves([out]), fl.fleaves([expected]), strict=True):
            assert torch.allclose(found, wanted)
        assert (place in memory([out]) and out is not x) == reused
        if reused:
            with pytest.raises(RuntimeError, match="donated"):
                x + 1
        else:
            assert torch.equal(x, kept)


SWAPS = {
    "handed on": lambda a, b: (b, a),
    "copies": lambda a, b: (b.clone(), a.clone()),
    "detached": lambda a, b: (b.detach(), a.detach()),
    "transposed": lambda a, b: (b.T, a.T),
    "no change": lambda a, b: (b + 0, a * 1),
    "zeros added": lambda a, b: (b + torch.zeros_like(b), a * torch.ones_like(a)),
    "power of one": lambda a, b: (b.pow(1), a / 1),
    "one of them": lambda a, b: (b.clone(), a + b),
    "views": lambda a, b: (b.view(-1).view(3, 3), a.reshape(9).reshape(3, 3)),
    "cast": lambda a, b: (b.to(torch.float32).to(D), a.to(D)),
    "computed from both": lambda a, b: (a.T + b, a @ b),
    "slices": lambda a, b: (torch.cat([b[:1], a[1:]]), torch.cat([a[:1], b[1:]])),
    "expanded": lambda a, b: (b[0].expand(3, 3), a[:, :1].expand(3, 3)),
    "twice": lambda a, b: (b, b + 0),
    "where": lambda a, b: (torch.where(a > 0, b, a), torch.where(a > 0, a, b)),
}


@pytest.mark.parametrize("swap", SWAPS.values(), ids=SWAPS)
@pytest.mark.parametrize("donate", [(0, 1), 0, 1])
def test_results_that_are_other_arguments_are_copied_before_these_are_written_over(swap, donate):
    a, b = randn(3, 3), randn(3, 3, seed=1)
    expected = swap(a.clone(), b.clone())
    out = fl.jit(swap, donate=donate)(a, b)
    for found, wanted in zip(out, expected, strict=True):
        assert torch.allclose(found, wanted, rtol=1e-6)
    spans = [x.data_ptr() for x in out]
    assert len(set(spans)) == 2


def test_equal_results_lie_apart():
    a, b = torch.ones(2), torch.ones(2)
    f = fl.jit(lambda a, b: (a + b, a + b, (a + b).view(2)), donate=0)
    out = f(a, b)
    assert len({x.data_ptr() for x in out}) == 3
    again = f(out[0], b)
    assert again[1].tolist() == [3, 3]
    assert out[1].tolist() == [2, 2]


def test_donation_by_name_and_by_keyword():
    f = fl.jit(lambda x, y: x + y, donate="y")
    x, y = torch.ones(2), torch.ones(2)
    place = y.data_ptr()
    out = f(x, y=y)
    assert out.data_ptr() == place
    assert f(x, out).data_ptr() == place
    assert x.tolist() == [1, 1]


def test_strides_of_donated_memory_may_be_any_that_do_not_overlap():
    x = randn(4, 3).T
    expected, place = x + 1, x.data_ptr()
    out = fl.jit(lambda x: x + 1, donate=0)(x)
    assert torch.equal(out, expected)
    assert out.data_ptr() == place
    assert out.stride() == (1, 3)


def test_memory_is_let_go():
    f = fl.jit(plus_one, donate=0)
    model = {"w": torch.zeros(4)}
    kept = weakref.ref(model["w"])
    new, _ = f(model, torch.ones(1))
    del model
    gc.collect()
    assert kept() is None
    again = weakref.ref(new["w"])
    del new
    gc.collect()
    assert again() is None


def test_nothing_is_donated_inside_a_transform():
    f = fl.jit(plus_one, donate=0)
    model = {"w": torch.zeros(4)}
    fl.gradient(lambda m: f(m, torch.ones(1))[0]["w"].sum(), model)
    fl.vmap(lambda m: f(m, torch.ones(1))[0]["w"], in_dims=0)(model)
    fl.jit(lambda m: f(m, torch.ones(1)))(model)
    w = torch.zeros(4, requires_grad=True)
    f({"w": w * 1}, torch.ones(1))
    assert model["w"].tolist() == [0, 0, 0, 0]


def test_a_donated_update_inside_is_an_update():
    model = mlp()
    state = fl.setup(fl.Adam(), model)
    x = randn(5, 3)

    def advance(model, state, donate=True):
        grads = fl.gradient(lambda m: (m(x) - 1).square().sum(), model)
        return fl.update(state, model, grads, donate=donate)

    new, _ = fl.jit(advance)(model, state)
    assert close(new, advance(model, state, donate=False)[0])
    assert model(x).isfinite().all()


def test_donation_under_inference_mode():
    f = fl.jit(plus_one, donate=0)
    with torch.inference_mode():
        model = {"w": torch.zeros(4)}
        place = model["w"].data_ptr()
        for _ in range(2):
            model, _ = f(model, torch.ones(1))
        assert model["w"].data_ptr() == place
        assert model["w"].tolist() == [2, 2, 2, 2]


def test_two_trees_take_turns():
    f = fl.jit(plus_one, donate=0)
    a, b = {"w": torch.zeros(4)}, {"w": torch.full((4,), 10.0)}
    for _ in range(3):
        a, _ = f(a, torch.ones(1))
        b, _ = f(b, torch.ones(1))
    assert a["w"].tolist() == [3] * 4
    assert b["w"].tolist() == [13] * 4
