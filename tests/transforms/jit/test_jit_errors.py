"""`jit`: what a compiled function may not do, and that an error leaves nothing broken."""

import logging
import re

import numpy as np
import pytest
import torch

import fluxlike as fl

RECORDED_ALONE = True

# Values that are not known while a function is traced


def by_if(x):
    if x.sum() > 0:
        return x
    return -x


def by_while(x):
    while x.sum() < 10:
        x = x * 2
    return x


def by_assert(x):
    assert (x > 0).all()
    return x


VALUES = {
    "if": (by_if, "if x.sum() > 0:"),
    "while": (by_while, "while x.sum() < 10:"),
    "assert": (by_assert, "assert (x > 0).all()"),
    "and": (lambda x: x.any() and x, "lambda x: x.any() and x"),
    "item": (lambda x: x.sum().item(), "x.sum().item()"),
    "float": (lambda x: float(x[0]), "float(x[0])"),
    "int": (lambda x: int(x[0]), "int(x[0])"),
    "tolist": (lambda x: x.tolist(), "x.tolist()"),
    "tolist of a number": (lambda x: x.sum().tolist(), "x.sum().tolist()"),
    "range": (lambda x: list(range(x[0].long())), "range(x[0].long())"),
    "numpy": (lambda x: x.numpy(), "x.numpy()"),
    "a function of numpy": (lambda x: np.log(x), "np.log(x)"),
    "format": (lambda x: f"{x.sum():.2f}", ":.2f"),
    "allclose": (lambda x: torch.allclose(x, x), "torch.allclose(x, x)"),
    "index": (lambda x: x[x[0].long()], "x[x[0].long()]"),
}


@pytest.mark.parametrize(("f", "code"), VALUES.values(), ids=VALUES)
@pytest.mark.parametrize("dynamic", [False, True])
def test_asking_for_a_value_names_the_line_and_what_to_write(f, code, dynamic):
    with pytest.raises(RuntimeError, match="jit can't know the value of a tensor") as error:
        fl.jit(f, dynamic=dynamic)(torch.ones(3))
    said = str(error.value)
    assert f"{__file__}:" in said
    assert code in said
    assert "fluxlike.cond" in said
    assert "fluxlike.scan" in said


one = torch.tensor(1)
CAPTURED = {
    "if": lambda x: x if one > 0 else -x,
    "if of a result": lambda x: x if one * 2 > 0 else -x,
    "item of a result": lambda x: x * (one + 1).item(),
}


@pytest.mark.parametrize("f", CAPTURED.values(), ids=CAPTURED)
def test_the_value_of_a_captured_tensor_is_not_known_either(f):
    with pytest.raises(RuntimeError, match="jit can't know the value of a tensor"):
        fl.jit(f)(torch.ones(3))


def test_the_value_of_a_literal_is_known():
    def f(x):
        return x * torch.tensor(3).item() if torch.tensor(2.0) * 2 > 1 else x

    assert fl.jit(f)(torch.ones(1)).tolist() == [3]


SHAPES = {
    "nonzero": (lambda x: x.nonzero(), "x.nonzero()"),
    "mask": (lambda x: x[x > 0], "x[x > 0]"),
    "masked_select": (lambda x: x.masked_select(x > 0), "masked_select"),
    "unique": (lambda x: x.unique(), "x.unique()"),
    "where": (lambda x: torch.where(x > 0)[0], "torch.where(x > 0)[0]"),
}


@pytest.mark.parametrize(("f", "code"), SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_shape_that_depends_on_values_names_the_line_and_what_to_write(f, code, dynamic):
    with pytest.raises(RuntimeError, match="the shape of what this line makes depends on them") as error:
        fl.jit(f, dynamic=dynamic)(torch.ones(3))
    assert f"{__file__}:" in str(error.value)
    assert code in str(error.value)
    assert "torch.where(mask, x, 0)" in str(error.value)


@fl.functor
class Gate:
    def __init__(self):
        self.w = torch.ones(3)

    def __call__(self, x):
        return x if (self.w * x).sum() > 0 else -x


@pytest.mark.parametrize("within", ["chain", "gradient", "vmap", "jit", "update"])
def test_the_line_is_named_however_deep_it_lies(within):
    model = fl.Chain(fl.Dense(3, 3), Gate())
    calls = {
        "chain": lambda m, x: m(x),
        "gradient": lambda m, x: fl.gradient(lambda m: m(x).sum(), m),
        "vmap": lambda m, x: fl.vmap(lambda x: by_if(x))(x),
        "jit": fl.jit(lambda m, x: fl.jit(Gate.__call__)(m.layers[1], x)),
        "update": lambda m, x: fl.update(fl.setup(fl.Adam(), m), m, fl.gradient(lambda m: m(x).sum(), m)),
    }
    with pytest.raises(RuntimeError) as error:
        fl.jit(calls[within])(model, torch.ones(2, 3))
    if within == "vmap":
        assert "vmap" in str(error.value) or "jit can't know" in str(error.value)
    else:
        assert "(self.w * x).sum() > 0 else -x" in str(error.value)


def test_the_checks_of_torch_s_distributions_are_named():
    normal = torch.distributions.Normal
    with pytest.raises(RuntimeError, match=r"torch\.distributions .* validate_args=False"):
        # Other packages switch the default off for the whole process.
        fl.jit(lambda x: normal(x, 1.0, validate_args=True).log_prob(x))(torch.ones(3))

    def unchecked(x):
        return normal(x, 1.0, validate_args=False).log_prob(x + 1)

    assert torch.allclose(fl.jit(unchecked)(torch.ones(3)), unchecked(torch.ones(3)))


def test_a_tensor_made_of_tensors_says_to_stack_them():
    with pytest.raises(
        RuntimeError, match=r"torch\.tensor\(\[a, b\]\)\.sum(.|\n)*torch\.stack\(\[a, b\]\) for"
    ):
        fl.jit(lambda a, b: torch.tensor([a, b]).sum())(torch.ones(()), torch.ones(()))


def test_a_function_of_torch_s_own_is_named_as_the_function_itself():
    with pytest.raises(RuntimeError, match="the function itself"):
        fl.jit(torch.nonzero)(torch.ones(3))


def test_sizes_and_dtypes_may_be_asked_for():
    def f(x):
        return x * 2 if x.shape[0] > 2 and x.dtype == torch.float32 and x.ndim == 1 and len(x) else x

    assert fl.jit(f)(torch.ones(3)).tolist() == [2, 2, 2]


# Changes in place


def written(f, *args):
    with pytest.raises(ValueError) as error:
        fl.jit(f)(*args)
    return str(error.value)


def set_first(x):
    x[0] = 0


WRITES = {
    "add_": lambda x: x.add_(1),
    "a view": lambda x: x[0].add_(1),
    "a view of a view": lambda x: x.view(-1)[1:].mul_(2),
    "an entry": set_first,
    "data": lambda x: x.data.add_(1),
    "detach": lambda x: x.detach().add_(1),
    "foreach": lambda x: torch._foreach_add_([x[0], x[1]], 1),
    "out": lambda x: torch.add(x, 1, out=x),
    "copy_": lambda x: x.copy_(torch.zeros(())),
    "chunk": lambda x: x.chunk(2)[1].zero_(),
    "random": lambda x: x.uniform_(),
    "batch norm": lambda x: torch.nn.functional.batch_norm(torch.ones(3, 2), x, torch.ones(2), training=True),
    "clip": lambda x: x.clamp_(0, 1),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_change_of_an_argument_in_place_is_refused_by_name(write):
    def f(model, x):
        write(model["w"])
        return x + 1

    model = {"w": torch.full((2,), 0.5)}
    said = written(f, model, torch.ones(1))
    assert "the argument model['w'] is changed in place" in said
    assert "w = w + 1, not w += 1" in said
    assert model["w"].tolist() == [0.5, 0.5]


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_change_of_a_captured_tensor_in_place_is_refused(write):
    w = torch.full((2,), 0.5)

    def f(x):
        write(w)
        return x + 1

    assert "shape (2,) that the compiled function closes over is changed in place" in written(
        f, torch.ones(1)
    )
    assert w.tolist() == [0.5, 0.5]


def test_the_changed_argument_is_named_however_it_was_given():
    def change(a, *rest, b=None, c=None):
        for x in (a, *rest, b, c):
            if x is not None:
                x.zero_()

    one, two = torch.ones(1), torch.ones(2)
    assert "the argument a is" in written(change, one)
    assert "the argument args[2][0] is" in written(lambda a, *rest: rest[1][0].zero_(), one, one + 1, [two])
    assert "the argument c is" in written(lambda a, c: c.zero_(), *(one,), two)
    with pytest.raises(ValueError, match=re.escape("the argument c['x'] is")):
        fl.jit(lambda a, c: c["x"].zero_())(one, c={"x": two})


def test_a_layer_that_changes_itself_is_refused():
    @fl.functor
    class Moving:
        def __init__(self):
            self.mean = torch.zeros(2)

        def __call__(self, x):
            self.mean.add_(x)
            return x

    with pytest.raises(ValueError, match=r"the argument self\.mean is changed in place"):
        fl.jit(Moving())(torch.ones(2))


def test_a_change_in_place_inside_a_gradient_is_refused_as_in_eager():
    def f(m):
        return fl.gradient(lambda m: m["w"].mul_(2).sum(), m)

    with pytest.raises(ValueError, match=r"\['w'\].*in place"):
        fl.jit(f)({"w": torch.ones(2)})


def test_changes_of_what_was_made_inside_are_fine():
    def f(x):
        y = x.clone()
        y[0] = 5
        y.view(-1)[1:].add_(1)
        z = torch.zeros(3)
        z += y
        return torch.nn.functional.relu(z, inplace=True)

    x = torch.tensor([1.0, 2.0, -3.0])
    assert fl.jit(f)(x).tolist() == [5, 3, 0]
    assert x.tolist() == [1, 2, -3]


def set_attribute(m):
    m.weight = m.weight + 1


def append(m):
    m["list"].append(torch.ones(1))


def new_key(m):
    m["new"] = 3


def other_constant(m):
    m["list"][0] = 4


@pytest.mark.parametrize(
    ("change", "tree", "place"),
    [
        (set_attribute, fl.Dense(2, 2), "model.weight"),
        (append, {"list": [torch.ones(1)]}, "model['list'][1]"),
        (new_key, {"w": torch.ones(1)}, "model['new']"),
        (other_constant, {"list": [3]}, "model['list'][0]"),
    ],
)
def test_setting_an_attribute_or_an_entry_of_an_argument_is_refused(change, tree, place):
    def f(model, x):
        change(model)
        return x + 1

    with pytest.raises(ValueError, match=re.escape(f"{place} of the arguments was set")):
        fl.jit(f)(tree, torch.ones(1))


# Errors of the user's own


def test_the_errors_of_the_function_come_through():
    class Mine(Exception):
        pass

    def f(x):
        raise Mine("here")

    with pytest.raises(Mine, match=r"^here$"):
        fl.jit(f)(torch.ones(1))


def test_a_layer_error_comes_through():
    model = fl.Chain(fl.Dense(3, 2), fl.Dense(3, 1))
    with pytest.raises(fl.LayerError, match=r"\.layers\[1\]: Dense\(3, 1\) got a tensor of shape \(4, 2\)"):
        fl.jit(lambda m, x: m(x))(model, torch.ones(4, 3))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: fl.Dense(3, 2), (4, 3)),
        (lambda: fl.Dense(3, 2), (3,)),
        (lambda: fl.ConvTranspose((3,), 3, 2), (4, 3, 5)),
        (lambda: fl.Bilinear((3, 3), 2), (4, 3)),
    ],
    ids=["Dense", "Dense of one", "ConvTranspose", "Bilinear"],
)
def test_a_layer_refuses_an_input_of_another_dtype_as_in_eager(layer, shape):
    model, x = fl.Chain(fl.identity, layer()), torch.ones(shape, dtype=torch.float64)
    with pytest.raises(fl.LayerError) as eager:
        model(x)
    with pytest.raises(fl.LayerError) as compiled:
        fl.jit(model)(x)
    assert str(compiled.value) == str(eager.value)
    assert "write x.to(torch.float32)" in str(eager.value)


def test_an_operation_refuses_tensors_of_two_dtypes_by_name():
    with pytest.raises(RuntimeError, match=r"^mm takes tensors of one dtype, found torch\.float32 and"):
        fl.jit(torch.mm)(torch.ones(2, 2), torch.ones(2, 2, dtype=torch.float64))


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_shape_mismatch_says_the_sizes(dynamic):
    f = fl.jit(lambda x, y: (x - y).square().mean(), dynamic=dynamic)
    with pytest.raises(RuntimeError) as error:
        f(torch.ones(4, 3), torch.ones(5, 3))
    assert "4" in str(error.value)
    assert "5" in str(error.value)
    assert not re.search(r"\bs\d", str(error.value))


class Records(logging.Handler):
    def __init__(self):
        super().__init__(logging.WARNING)
        self.seen = []

    def emit(self, record):
        self.seen.append(record)


def test_an_error_is_raised_and_not_logged_too():
    log, records = logging.getLogger("torch._subclasses.fake_tensor"), Records()
    log.addHandler(records)
    try:
        with pytest.raises(RuntimeError):
            fl.jit(lambda x, y: x @ y)(torch.ones(4, 3), torch.ones(5, 3))
    finally:
        log.removeHandler(records)
    assert records.seen == []


def test_a_gradient_s_own_errors_come_through():
    with pytest.raises(ValueError, match="Did you mean the jacobian"):
        fl.jit(lambda x: fl.gradient(lambda x: x * 2, x))(torch.ones(2))
    with pytest.raises(TypeError, match="the first argument of update holds tensors"):
        fl.jit(lambda m: fl.update(m, m, m))({"w": torch.ones(1)})


# After an error


def fails_first(model, x, shape_ok):
    y = model(x)
    if not shape_ok:
        raise KeyError("not now")
    return y


def test_the_next_call_works():
    f = fl.jit(fails_first)
    model = fl.Dense(2, 1)
    for _ in range(2):
        with pytest.raises(KeyError):
            f(model, torch.ones(1, 2), False)
    assert f.cache_info().traces == 0
    assert torch.allclose(f(model, torch.ones(1, 2), True), model(torch.ones(1, 2)))
    assert f.cache_info() == (3, 1)


def test_the_scope_is_as_it_was():
    def f(m, x):
        def loss(m):
            fl.random.uniform((2,))
            by_if(m(x))
            return m(x).sum()

        return fl.gradient(loss, m)

    norm = fl.BatchNorm(3)
    with fl.seeded(fl.Key(3)):
        expected = fl.random.uniform((2,))
    with fl.seeded(fl.Key(3)):
        with pytest.raises(RuntimeError, match="jit can't know"):
            fl.jit(f)(norm, torch.rand(4, 3))
        assert torch.equal(fl.random.uniform((2,)), expected)
        assert not fl.training()
    assert torch.is_grad_enabled()
    assert fl.current(norm.running_mean) is norm.running_mean
    assert torch.ones(1).add(1).item() == 2  # no mode of the trace is left
    norm_grads = fl.gradient(lambda m: m(torch.rand(4, 3)).sum(), norm)
    assert isinstance(norm_grads.running_mean, fl.Assigned)


def test_a_failed_trace_donates_nothing():
    f = fl.jit(lambda m, x: (m["w"] + 1, by_if(x)), donate="m")
    model = {"w": torch.ones(2)}
    with pytest.raises(RuntimeError, match="jit can't know"):
        f(model, torch.ones(1))
    assert model["w"].tolist() == [1, 1]
