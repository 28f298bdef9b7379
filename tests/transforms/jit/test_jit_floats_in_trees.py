"""`jit`: a float among tensors is an input of the graph, and still a constant of the tree."""

import pytest
import torch

import fluxlike as fl

RECORDED_ALONE = True

D = torch.float64


@fl.functor(scalars=("temperature",))
class Softened:
    def __init__(self, w, temperature):
        self.w, self.temperature = w, temperature

    def __call__(self):
        return (self.w / self.temperature).exp().sum()


def tree(scale):
    return {
        "w": torch.full((2,), 3.0, dtype=D),
        "scale": scale,
        "soft": Softened(torch.ones(2, dtype=D), 2 * scale),
    }


def product(t):
    return (t["w"] * t["scale"]).sum() * t["soft"]()


FUNCTIONS = {
    "gradient": lambda t: fl.gradient(product, t),
    "fmap": lambda t: fl.fmap(lambda x: x + 1, t),
    "fleaves": lambda t: fl.fleaves(t),
    "trainables": lambda t: fl.trainables(t),
    "scale": lambda t: fl.tree.scale(t, 3.0),
    "add": lambda t: fl.tree.add(t, t),
    "lerp": lambda t: fl.tree.lerp(t, fl.tree.scale(t, 2.0), 0.5),
    "dot": lambda t: fl.tree.dot(t, t),
    "norm": lambda t: fl.tree.norm(t),
    "zeros_like": lambda t: fl.tree.zeros_like(t),
    "clone": lambda t: fl.tree.clone(t),
    "f32": lambda t: fl.f32(t),
    "f16": lambda t: fl.f16(t),
    "destructure": lambda t: fl.destructure(t)[0],
    "setup": lambda t: fl.setup(fl.Momentum(), t),
    "step": lambda t: fl.update(fl.setup(fl.Adam(), t), t, fl.gradient(product, t)),
    "withupdates": lambda t: fl.withupdates(product, t),
    "vmap": lambda t: fl.vmap(lambda t: t["w"] * t["scale"])({"w": t["w"], "scale": t["scale"]}),
    "state": lambda t: fl.tree.scale(fl.setup(fl.Adam(t["scale"]), t), 2.0),
    "partial gradient": lambda t: fl.gradient(product, t, wrt=lambda t: t["w"]),
}


@pytest.mark.parametrize("f", FUNCTIONS.values(), ids=FUNCTIONS)
def test_what_eager_code_takes_for_a_constant_is_one(f):
    jitted = fl.jit(f)
    for scale in (0.5, 2.0):
        found, expected = jitted(tree(scale)), f(tree(scale))
        assert fl.tree.allclose(found, expected, rtol=1e-9)
    assert jitted.cache_info().traces == 1


def test_stacked_members_share_a_float():
    w, v = torch.ones(2), torch.zeros(2)
    found = fl.jit(lambda w, v, s: fl.stack([{"w": w, "scale": s}, {"w": v, "scale": s}]))(w, v, 2.0)
    assert found["scale"] == 2.0
    assert found["w"].shape == (2, 2)


DIFFERENTIATED = {
    "gradient": lambda s, w: fl.gradient(lambda s: (s * w).sum() ** 2, s),
    "of numbers alone": lambda s, w: fl.gradient(lambda s: (s * 2) ** 2, s),
    "of a gradient": lambda s, w: fl.gradient(lambda s: fl.gradient(lambda s: (s * w).sum() ** 3, s), s),
    "two": lambda s, w: sum(fl.gradient(lambda s, r: (s * r * w).sum(), s, 3.0, argnums=(0, 1))),
    "torch.func": lambda s, w: torch.func.grad(lambda s: (s * w).sum() ** 2)(torch.as_tensor(s, dtype=D)),
}


@pytest.mark.parametrize("f", DIFFERENTIATED.values(), ids=DIFFERENTIATED)
def test_a_float_argument_is_differentiated_by_itself(f):
    w = torch.arange(3.0, dtype=D)
    jitted = fl.jit(f)
    for s in (2.0, -0.5):
        assert float(jitted(s, w)) == pytest.approx(float(f(s, w)))
    assert jitted.cache_info().traces == 1


def test_a_float_is_a_cotangent_and_a_tangent_of_any_dtype():
    for dtype in (torch.float32, D):
        x = torch.ones(3, dtype=dtype)

        def pulled(x, c):
            return fl.pullback(lambda x: (x**2).sum(), x)[1](c)

        def pushed(s, v):
            return fl.pushforward(lambda s: (s * x).sum(), s, v=v)

        for f, first in ((pulled, x), (pushed, 3.0)):
            for found, wanted in zip(fl.jit(f)(first, 2.0), f(first, 2.0), strict=True):
                torch.testing.assert_close(found, wanted)


def test_derivatives_of_a_float_of_other_kinds():
    w = torch.arange(3.0, dtype=D)

    def g(s):
        return (s * w).sum() ** 3

    for f in (
        lambda s: fl.hessian(g, s),
        lambda s: fl.pullback(g, s)[1](1.0),
        lambda s: fl.pushforward(g, s, v=1.0)[1],
        lambda s: fl.jacobian(lambda s: s * w, s),
    ):
        found, expected = fl.jit(f)(2.0), f(2.0)
        assert torch.allclose(torch.as_tensor(found, dtype=D), torch.as_tensor(expected, dtype=D))
