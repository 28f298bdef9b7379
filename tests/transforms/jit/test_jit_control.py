"""Loops and branches that a compiled function records are mapped and differentiated again as eager ones."""

import pytest
import torch

import fluxlike as fl

torch.manual_seed(0)
ROWS = torch.randn(3, 2, dtype=torch.float64)


def loop(h):
    return fl.scan(lambda h, x: ((h + x).tanh(), None), h, ROWS)[0]


def branch(w):
    return fl.cond(w.sum() > 0, lambda w: (w**3).sum(), lambda w: (w**2).sum(), w)


def rows_of_a_pullback(h):
    _, back = fl.pullback(loop, h)
    return fl.vmap(back)(torch.eye(2, dtype=h.dtype))


FUNCTIONS = {
    "a loop": loop,
    "the gradient of a loop": lambda h: fl.gradient(lambda h: loop(h).sum(), h),
    "a mapped pullback of a loop": rows_of_a_pullback,
    "the jacobian of a loop": lambda h: fl.jacobian(loop, h),
    "the hessian of a loop": lambda h: fl.hessian(lambda h: loop(h).square().sum(), h),
    "the gradient of a branch": lambda w: fl.gradient(branch, w),
    "the hessian of a branch": lambda w: fl.hessian(branch, w),
    "the hessian of the other branch": lambda w: fl.hessian(branch, -w),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_is_as_eager(name):
    f, x = FUNCTIONS[name], torch.tensor([0.3, 0.7], dtype=torch.float64)
    torch.testing.assert_close(fl.jit(f)(x), f(x), rtol=1e-10, atol=1e-12)
