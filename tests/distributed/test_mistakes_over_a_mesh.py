"""What goes wrong over a mesh is an error that names the place and says what to write."""

import re

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh

import fluxlike as fl
from fluxlike import distributed as d
from tests.distributed.ranks import run


def mean_square(model, x):
    return model(x).square().mean()


def network():
    return fl.Chain(fl.Dense(8, 6, fl.tanh), fl.BatchNorm(6), fl.Dense(6, 3))


class Parts:
    """A model, its gradients and its state, plain, over a mesh, and over another mesh of the same ranks."""

    def __init__(self):
        self.mesh, self.other = d.mesh(), init_device_mesh("cpu", (2,), mesh_dim_names=("rows",))
        x = torch.randn(4, 8)
        self.model, self.x = {"plain": network()}, {"plain": x}
        for name, mesh in (("over", self.mesh), ("other", self.other)):
            self.model[name] = fl.to_device(self.model["plain"], mesh, d.shard())
            self.x[name] = d.shard_batch(x, mesh)
        self.state = {name: fl.setup(fl.AdamW(), model) for name, model in self.model.items()}

    def grads(self, name):
        return fl.gradient(mean_square, self.model[name], self.x[name])


def text_of(f, *args):
    """The error of a call."""
    try:
        f(*args)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def told(mistake, *args):
    return text_of(mistake, *args)


def update(state, model, grads, how=fl.update):
    parts = Parts()
    how(parts.state[state], parts.model[model], parts.grads(grads))


PATH = r"\.layers\[0\]\.weight"
ON, OVER, OTHER = "on cpu", r"over the mesh \(data=2\)", r"over the mesh \(rows=2\)"
MOVE = r"write state = fluxlike\.to_device\(state, mesh, plan\), with the plan of the model, or make it of"
BACK = r"write state = fluxlike\.to_device\(state, 'cpu'\)"
TAKE = r"take the gradient of this model: grads = gradient\(loss, model, x, y\)"

# By where state, model and gradients are: what is elsewhere, where, where the parameter is, what to write.
UPDATES = {
    ("plain", "over", "over"): ("state", ON, OVER, MOVE),
    ("over", "plain", "plain"): ("state", OVER, ON, BACK),
    ("other", "over", "over"): ("state", OTHER, OVER, MOVE),
    ("over", "over", "plain"): ("gradient", ON, OVER, TAKE),
    ("plain", "plain", "over"): ("gradient", OVER, ON, TAKE),
    ("over", "over", "other"): ("gradient", OTHER, OVER, TAKE),
}


@pytest.mark.parametrize("how", [fl.update, fl.steps])
@pytest.mark.parametrize("where", UPDATES)
def test_a_step_refuses_a_model_a_state_and_gradients_at_different_places(where, how):
    what, found, expected, right = UPDATES[where]
    for text in run(told, 2, update, *where, how):
        assert re.match(
            f"ValueError: the {what} of {PATH} is {found}, and the parameter {expected}; {right}", text
        )


def average():
    parts = Parts()
    fl.averaged(fl.setup(fl.EMA(fl.AdamW()), parts.model["plain"]), parts.model["over"])


def carried():
    parts = Parts()
    fl.setup(fl.AdamW(), parts.model["over"], carry=parts.state["plain"])


@pytest.mark.parametrize(("mistake", "what"), [(average, "average"), (carried, "state")])
def test_what_is_kept_elsewhere_than_the_model_is_refused_where_it_is_read(mistake, what):
    for text in run(told, 2, mistake):
        assert re.match(rf"ValueError: the {what} of {PATH} is on cpu, and the parameter over the mesh", text)


def batch_elsewhere(model, x):
    parts = Parts()
    fl.gradient(mean_square, parts.model[model], parts.x[x])


def half_of_the_model():
    parts = Parts()
    model = fl.at(parts.model["over"], lambda m: m.layers[2]).set(parts.model["other"].layers[2])
    fl.gradient(mean_square, model, parts.x["over"])


def two_places():
    parts = Parts()
    fl.get_device((parts.model["over"], parts.model["plain"]))


TWO = r"a computation is over one mesh: bring all to it, to_device\(tree, mesh, plan\) and shard_batch\(batch"

ELSEWHERE = {
    (batch_elsewhere, "over", "plain"): (
        "the model is over a mesh, and a tensor of data argument 0 is on cpu; write x, y = "
        r"fluxlike\.distributed\.shard_batch\(\(x, y\), mesh\)"
    ),
    (batch_elsewhere, "over", "other"): f"{PATH} is {OVER}, and a tensor of data argument 0 {OTHER}; {TWO}",
    (half_of_the_model,): rf"{PATH} is {OVER}, and \.layers\[2\]\.weight {OTHER}; {TWO}",
    (two_places,): (
        rf"the tree is at several places: \[0\]{PATH} is {OVER}, \[1\]{PATH} {ON}; write "
        r"to_device\(tree, mesh, plan\), or cpu\(tree\)"
    ),
}


@pytest.mark.parametrize("case", ELSEWHERE)
def test_tensors_of_one_computation_at_different_places_are_refused_by_path(case):
    for text in run(told, 2, *case):
        assert re.match(f"ValueError: {ELSEWHERE[case]}", text)


def plain_model():
    parts = Parts()
    value, grads = fl.withgradient(mean_square, parts.model["plain"], parts.x["over"])
    expected, alone = fl.withgradient(mean_square, parts.model["plain"], parts.x["plain"])
    return abs(float(value) - float(expected)), fl.tree.allclose(grads, alone, atol=1e-6)


def test_a_plain_model_has_the_gradient_of_all_rows_of_a_batch_over_a_mesh():
    for distance, same in run(plain_model, 2):
        assert distance < 1e-6
        assert same


def other_structure():
    first = d.rank() == 0
    fl.to_device(fl.Chain(fl.Dense(8, 4), *([fl.Dense(4, 4)] if first else [])), d.mesh(), d.shard())


def other_shape():
    fl.to_device(fl.Chain(fl.Dense(8, 4 + 2 * d.rank())), d.mesh(), d.shard())


def other_dtype():
    model = fl.Dense(8, 4)
    fl.to_device(fl.f64(model) if d.rank() else model, d.mesh(), d.shard())


def other_plan():
    fl.to_device(
        fl.Dense(8, 4), d.mesh(), d.shard() if d.rank() else d.by_path({"weight": d.split(1, "data")})
    )


def no_plan_here():
    fl.to_device(fl.Dense(8, 4), d.mesh(), d.shard() if d.rank() else d.split(1, "data"))


def other_numbers():
    model = fl.Chain(fl.Dense(8, 4), fl.Dense(4, 4))
    model = fl.at(model, ".layers[1].weight").apply(lambda w: w + d.rank())
    fl.to_device(model, d.mesh())


def other_parts():
    torch.manual_seed(d.rank())
    fl.to_device(fl.Dense(8, 4), d.mesh(), d.shard())


def other_buffers():
    model = fl.at(fl.BatchNorm(4), ".running_mean").apply(lambda x: x + d.rank())
    fl.to_device(model, d.mesh(), d.shard())


DIFFER = "to_device: the ranks hold different trees: rank 0 has "
MAKE = "; make the same tree on every rank"

KEEPS = r"holds other numbers on rank 1 than on rank 0; write torch\.manual_seed\(0\) before the tree is made"

DISAGREE = {
    other_structure: rf"{DIFFER}\.layers\[1\]\.weight of shape \(4, 4\), .*, where rank 1 has no more{MAKE}",
    other_shape: rf"{DIFFER}{PATH} of shape \(4, 8\), .* where rank 1 has {PATH} of shape \(6, 8\), .*{MAKE}",
    other_dtype: rf"{DIFFER}\.weight of .*float32, .*, where rank 1 has \.weight of .*float64, .*{MAKE}",
    other_plan: rf"{DIFFER}\.weight of .*, Shard\(dim=1\), where rank 1 has .*, Shard\(dim=0\){MAKE}",
    other_numbers: rf"to_device: \.layers\[1\]\.weight of shape \(4, 4\), .*, {KEEPS}",
    other_parts: rf"to_device: \.weight of shape \(4, 8\), .*, Shard\(dim=\d\), {KEEPS}",
    other_buffers: rf"to_device: \.running_mean of shape \(4,\), .*, {KEEPS}",
}


@pytest.mark.parametrize("mistake", DISAGREE)
def test_ranks_that_hold_different_trees_all_say_so_and_where(mistake):
    for text in run(told, 2, mistake):
        assert re.match(f"ValueError: {DISAGREE[mistake]}", text)


def test_where_a_plan_fails_on_one_rank_the_others_do_not_wait_for_it():
    own, other = run(told, 2, no_plan_here)
    assert re.match(r"ValueError: \.bias: split\(1\) of a parameter", own)
    assert re.match(rf"ValueError: {DIFFER}ValueError: \.bias: split\(1\)", other)


def dense(plan, mesh=None):
    fl.to_device(fl.Chain(fl.Dense(8, 4), fl.Dense(4, 4)), d.mesh() if mesh is None else mesh(), plan)


def no_names():
    return init_device_mesh("cpu", (1,))


SHARD = r"write one, such as fluxlike\.distributed\.shard\(\)"

PLANS = {
    "a misspelt path": (
        lambda: dense(d.by_path({r"layers\[1\].wieght": d.shard()})),
        r"ValueError: by_path: .* is found in no path of the tree; the closest are \.layers\[1\]\.weight, ",
    ),
    "a path of another tree": (
        lambda: dense(d.by_path({r"zzz": d.shard()})),
        r"ValueError: by_path: 'zzz' is found in no path of the tree; its paths are \.layers\[0\]\.weight, ",
    ),
    "a path inside another plan": (
        lambda: dense(d.combined(d.by_path({"zzz": d.shard()}), d.shard())),
        "ValueError: by_path: 'zzz' is found in no path",
    ),
    "an axis that a bias lacks": (
        lambda: dense(d.split(1, "data")),
        r"ValueError: \.layers\[0\]\.bias: split\(1\) of a parameter of shape \(4,\); choose .*by_path\(",
    ),
    "an axis that the mesh lacks": (
        lambda: dense(d.split(0)),
        r"ValueError: .*axis 'model' of a mesh that has 'data'; write fluxlike\.distributed\.mesh\(model=…\)",
    ),
    "a mesh without names": (
        lambda: dense(d.split(0), no_names),
        r"ValueError: .*of a mesh that has no names; write .*, mesh_dim_names=\('model',\)\)",
    ),
    "a plan without a mesh": (
        lambda: fl.to_device(fl.Dense(2, 1), d.shard()),
        r"TypeError: to_device got a plan where the mesh stands: write to_device\(tree, fluxlike\.",
    ),
    "a plan for a device": (
        lambda: fl.to_device(fl.Dense(2, 1), "cpu", d.shard()),
        r"TypeError: to_device\(tree, 'cpu', plan\): a plan says how to divide a tree over many dev",
    ),
    "a word": (lambda: dense("shard"), f"TypeError: to_device got 'shard' for a plan; {SHARD}"),
    "what makes a plan": (
        lambda: dense(d.shard),
        r"TypeError: to_device got shard for a plan, which can't be called .*; write the plan .*, shard\(…\)",
    ),
    "what makes a plan, by path": (
        lambda: d.by_path({"weight": d.replicate}),
        r"TypeError: by_path got replicate for a plan, .* replicate\(…\)",
    ),
    "no plan beside others": (lambda: d.combined(d.shard(), {}), r"TypeError: combined got \{\} for a plan"),
    "a plan of names": (
        lambda: dense(lambda path, x, mesh: {"data": 0}),
        rf"TypeError: {PATH}: the plan gave \{{'data': 0\}}; a plan gives \{{axis of the mesh: ",
    ),
    "a plan of a number": (lambda: dense(lambda path, x, mesh: 0), rf"TypeError: {PATH}: the plan gave 0; "),
    "an axis too far": (
        lambda: dense(lambda path, x, mesh: {0: 2}),
        rf"ValueError: {PATH}: the plan divides axis 2 of a tensor of shape \(4, 8\) over axis 0 of a mesh",
    ),
}


@pytest.mark.parametrize("mistake", PLANS)
def test_a_plan_that_is_none_or_fits_no_tree_is_refused_with_what_to_write(mistake):
    make, pattern = PLANS[mistake]
    assert re.match(pattern, text_of(make))


def shared_unevenly(rows):
    torch.set_default_dtype(torch.float64)
    mesh = d.mesh()
    model, x = network(), torch.randn(rows, 8)
    over, shares = fl.to_device(model, mesh, d.shard()), d.shard_batch(x, mesh)

    def total(model, x):
        return model.layers[0](x).square().sum()

    grads, alone = fl.gradient(total, over, shares), fl.gradient(total, model, x)
    after, _ = fl.update(fl.setup(fl.AdamW(), over), over, grads)
    expected, _ = fl.update(fl.setup(fl.AdamW(), model), model, alone)
    return fl.tree.allclose(fl.cpu(after), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("rows", [0, 1, 3, 5, 6])
def test_rows_that_the_ranks_cannot_share_equally_give_the_numbers_of_one_process(rows):
    assert run(shared_unevenly, 3, rows) == [True] * 3
