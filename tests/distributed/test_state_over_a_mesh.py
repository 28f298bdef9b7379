"""The state of an optimiser lies over a mesh as its parameters do, and trees come back as they went."""

import copy
import os
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fluxlike as fl
from fluxlike import distributed as d
from fluxlike.trees.structure import flatten, structure_of
from tests.distributed.ranks import run
from tests.optimisers.rule_cases import CASES

STEPS = 20

QUICK = (
    "AdamW", "Adafactor", "NAdam",
    "EMA of Scheduled of AccumGrad", "ApplyIfFinite of AccumGrad of Lookahead",
)  # fmt: skip

PLANS = {
    "replicate": d.replicate,
    "shard": d.shard,
    "shard at least": lambda: d.shard(at_least=20),
    "by path": lambda: d.by_path({r"w'\]$": d.split(-1, "data"), r"^\['tied'\]": d.shard()}),
}


def parameters():
    w = torch.randn(6, 4)
    shapes = {"b": (5,), "number": (), "cube": (2, 3, 4)}
    return {"w": w, "tied": [w]} | {name: torch.randn(shape) for name, shape in shapes.items()}


def layout(tree):
    """By path, how each tensor of a tree lies."""
    leaves, treedef = flatten(tree)
    pairs = zip(structure_of(treedef).paths, leaves, strict=True)
    return {path: getattr(x, "placements", "plain") for path, x in pairs if isinstance(x, Tensor)}


def far(tree, other):
    """The largest distance between the numbers of two plain trees."""
    pairs = zip(fl.fleaves(tree), fl.fleaves(other), strict=True)
    assert all(type(x) is Tensor for x in fl.fleaves(tree))
    return max(float((x.to(y.dtype) - y).abs().max()) for x, y in pairs)


def moved(case, plan):
    """How far 20 steps over a mesh end from those of one process, and what lies otherwise than at first."""
    torch.set_default_dtype(torch.float64)
    mesh, rule, how = d.mesh(), CASES[case].rule, PLANS[plan]()
    model = parameters()
    if CASES[case].complex:
        model["complex"] = torch.randn(4, 3, dtype=torch.complex128)
    over = fl.to_device(model, mesh, how)
    state, state_over = fl.setup(rule, model), fl.setup(rule, over)
    expected = layout(state_over)
    for _ in range(STEPS):
        grads = fl.fmap(torch.randn_like, model)
        model, state = fl.update(state, model, grads)
        over, state_over = fl.update(state_over, over, fl.to_device(grads, mesh, how))
    found = layout(state_over)
    return far(fl.cpu((over, state_over)), (model, state)), {
        p: x for p, x in found.items() if expected[p] != x
    }


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=() if c in QUICK else pytest.mark.slow) for c in CASES]
)
def test_every_rule_moves_parameters_over_a_mesh_as_in_one_process_and_its_state_stays_as_setup_laid_it(case):
    for distance, elsewhere in run(moved, 2, case, "shard"):
        assert distance < 1e-10
        assert not elsewhere


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["shard at least", "by path"])
@pytest.mark.parametrize("case", ["AdamW", "Adafactor", "Muon", "ApplyIfFinite, then decay"])
def test_three_ranks_that_divide_unevenly_move_parameters_as_one_process(case, plan):
    for distance, _ in run(moved, 3, case, plan):
        assert distance < 1e-10


RULES = {
    "AdamW": fl.AdamW(),
    "links": fl.OptimiserChain(fl.ClipGlobalNorm(1.0), fl.AccumGrad(2), fl.AdamW()),
    "Adafactor": fl.Adafactor(),
    "EMA of Muon": fl.EMA(fl.Muon()),
    "scheduled": fl.Scheduled(fl.AdamW(), lr=fl.schedules.Exp(1e-3, 0.9)),
    "master copies": fl.MixedPrecision(torch.float64, fl.NAdam(torch.tensor(1e-3))),
}


def followed(sizes):
    """What lies otherwise in a state that was moved than in one that was made of the moved model."""
    mesh = d.mesh(**sizes)
    body = fl.Chain(fl.Dense(8, 12, fl.relu), fl.BatchNorm(12), fl.Dense(12, 4))
    block = d.separate_projections(fl.TransformerBlock(16, 4))
    plans = {name: plan() for name, plan in PLANS.items() if name != "by path"} | {
        "by path": d.by_path({r"\.layers\[0\]\.weight$": d.shard(), r"bias$": d.replicate()}, rest=d.shard()),
        "tensor parallel": d.tensor_parallel(rest=d.shard()),
        "combined": d.combined(d.by_path({r"weight$": d.split(-1)}), d.shard()),
    }
    wrong = []
    for name, plan in plans.items():
        if "model" not in sizes and name in ("tensor parallel", "combined"):
            continue
        model = block if name == "tensor parallel" else body
        over = fl.to_device(model, mesh, plan)
        # Where two axes of the mesh divide a matrix, DTensor chooses how sums along its axes lie.
        for rule in RULES if name != "combined" else [r for r in RULES if r != "Adafactor"]:
            found = layout(fl.to_device(fl.setup(RULES[rule], model), mesh, plan))
            expected = layout(fl.setup(RULES[rule], over))
            wrong += [
                (name, rule, p) for p in expected.keys() | found.keys() if expected.get(p) != found.get(p)
            ]
    return wrong


@pytest.mark.parametrize("sizes", [{}, {"data": 1, "model": 2}])
def test_a_state_that_is_moved_lies_as_one_that_is_made_of_the_moved_model(sizes):
    assert run(followed, 2, sizes) == [[], []]


def shared():
    w = torch.ones(4, 2)
    state = fl.to_device(fl.setup(fl.AdamW(), {"a": w, "b": [w], "c": torch.ones(3)}), d.mesh(), d.shard())
    back = fl.cpu(state)
    of_tied = [
        a.state.exp_avg is b.state.exp_avg
        for a, b in ((state["a"], state["b"][0]), (back["a"], back["b"][0]))
    ]
    return of_tied, state["a"].state.step is state["c"].state.step, state["a"].state.step


def test_moments_of_a_tied_parameter_stay_tied_and_counters_stay_shared_plain_numbers():
    for of_tied, of_all, step in run(shared, 2):
        assert of_tied == [True, True]
        assert of_all
        assert type(step) is Tensor


def quadratic(model, x):
    return model(x).square().mean()


def moved_in_the_middle(plan, other):
    torch.set_default_dtype(torch.float64)
    mesh, rule = d.mesh(), fl.OptimiserChain(fl.ClipGlobalNorm(0.1), fl.AdamW(1e-2))
    model = fl.Chain(fl.Dense(8, 6, fl.tanh), fl.Dense(6, 3))
    state, x = fl.setup(rule, model), torch.randn(4, 8)
    model, state = fl.update(state, model, fl.gradient(quadratic, model, x))
    over, kept = fl.to_device(model, mesh, PLANS[plan]()), fl.to_device(state, mesh, PLANS[other]())
    for _ in range(3):
        model, state = fl.update(state, model, fl.gradient(quadratic, model, x))
        grads = fl.gradient(quadratic, over, d.shard_batch(x, mesh))
        over, kept = fl.update(kept, over, grads, donate=True)
    at = fl.at(kept, ".layers[0].weight").get().state[1].exp_avg.placements
    return far(fl.cpu((over, kept)), (model, state)), at == over.layers[0].weight.placements


@pytest.mark.parametrize("other", ["replicate", "shard"])
@pytest.mark.parametrize("plan", ["replicate", "shard"])
def test_a_run_goes_on_over_a_mesh_and_a_state_by_another_plan_comes_to_lie_as_the_model(plan, other):
    for distance, together in run(moved_in_the_middle, 2, plan, other):
        assert distance < 1e-10
        assert together


def averages():
    model = fl.to_device(fl.Dense(4, 2), d.mesh(), d.shard())
    state = fl.setup(fl.EMA(fl.Descent(0.1)), model)
    by_another = fl.to_device(state, d.mesh(), d.replicate())
    return layout(model), layout(fl.averaged(state, model)), layout(fl.averaged(by_another, model))


def test_the_averaged_model_lies_as_the_model():
    for found in run(averages, 2):
        assert found[0] == found[1] == found[2]


def kept_in_place():
    mesh = d.mesh()
    model, batch = fl.to_device(fl.Dense(4, 2), mesh, d.shard()), d.shard_batch(torch.ones(4, 4), mesh)
    again = fl.to_device([model, batch, torch.ones(3)], mesh)
    whole = fl.to_device(model, mesh, d.replicate())
    return again[0].weight is model.weight, again[1] is batch, layout(again[2]), layout(whole)[".weight"]


def test_without_a_plan_what_is_over_the_mesh_stays_as_it_lies():
    for weight, batch, new, asked in run(kept_in_place, 2):
        assert weight
        assert batch
        assert all(p.is_replicate() for p in (*new[""], *asked))


shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
dtypes = st.sampled_from(
    [torch.float32, torch.float64, torch.int64, torch.bfloat16, torch.bool, torch.complex64]
)


def there_and_back(tree, plan, other):
    there = fl.to_device(tree, d.mesh(), PLANS[plan]())
    again = fl.to_device(there, d.mesh(), PLANS[other]())
    back = fl.to_device(again, "cpu")
    pairs = list(zip(fl.fleaves(back), fl.fleaves(tree), strict=True))
    ties = [[id(x) == id(y) for x in fl.fleaves(t)] for t in (tree, back) for y in fl.fleaves(t)]
    same = all(type(x) is Tensor and x.dtype == y.dtype and torch.equal(x, y) for x, y in pairs)
    return same, ties[: len(ties) // 2] == ties[len(ties) // 2 :]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(shapes, dtypes), max_size=5),
    st.lists(st.integers(0, 4), max_size=6),
    *[st.sampled_from(["replicate", "shard", "shard at least"])] * 2,
)
def test_a_tree_comes_back_from_a_mesh_as_it_went_with_its_ties(kinds, places, plan, other):
    tensors = [(10 * torch.randn(shape)).to(dtype) for shape, dtype in kinds]
    tree = {"tied": [tensors[i] for i in places if i < len(tensors)], "all": tensors, "constant": 3}
    assert run(there_and_back, 2, tree, plan, other) == [(True, True)] * 2


def trained():
    model = fl.to_device(fl.Chain(fl.Dense(8, 6, fl.tanh), fl.Dense(6, 3)), d.mesh(), d.shard())
    return model, fl.setup(fl.EMA(fl.AdamW()), model)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda tree: pickle.loads(pickle.dumps(tree)),
    "clone": fl.tree.clone,
    "f64 and back": lambda tree: fl.f32(fl.f64(tree)),
    "stack": lambda tree: fl.unstack(fl.stack([tree, tree]))[1],
}


def copied(name):
    tree = trained()
    new = COPIES[name](tree)
    return layout(new) == layout(tree), fl.tree.allclose(new, tree), far(fl.cpu(new), fl.cpu(tree))


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_of_a_tree_over_a_mesh_lies_as_the_tree(name):
    assert run(copied, 2, name) == [(True, True, 0.0)] * 2


def saved(folder):
    tree, path = trained(), os.path.join(folder, "run.safetensors")
    fl.save(path, tree)
    alone = fl.Chain(fl.Dense(8, 6, fl.tanh), fl.Dense(6, 3))
    whole = fl.load(path, like=(alone, fl.setup(fl.EMA(fl.AdamW()), alone)))
    return far(whole, fl.cpu(tree)), layout(fl.load(path, like=tree)) == layout(tree)


def test_one_file_of_a_tree_over_a_mesh_is_read_over_the_mesh_and_on_one_device(tmp_path):
    assert run(saved, 2, str(tmp_path)) == [(0.0, True)] * 2


def looked_at():
    model, state = trained()
    alone = fl.cpu(model)
    flat, rebuild = fl.destructure(model)
    frozen = fl.freeze(state, lambda s: s.layers[0])
    x = d.shard_batch(torch.randn(4, 8), d.mesh())
    after, _ = fl.update(frozen, model, fl.gradient(quadratic, model, x))
    return {
        "printed": repr(model) == repr(alone),
        "summary": str(fl.summary(model, x)) == str(fl.summary(alone, fl.cpu(x))),
        "device": fl.get_device((model, state)) == torch.device("cpu"),
        "norm": abs(float(fl.tree.norm(model)) - float(fl.tree.norm(alone))) < 1e-6,
        "allclose": fl.tree.allclose(model, alone),
        "vector": torch.equal(fl.cpu(flat), fl.destructure(alone)[0]),
        "rebuilt": far(fl.cpu(rebuild(2 * flat)), fl.tree.scale(alone, 2.0)) == 0.0,
        "frozen": [a is b for a, b in zip(fl.fleaves(after), fl.fleaves(model), strict=True)],
        "thawed": not fl.thaw(frozen).layers[0].weight.frozen,
        "adjusted": fl.adjust(state, 1e-4).layers[0].weight.rule.rule.lr,
    }


def test_what_looks_at_a_tree_over_a_mesh_sees_the_whole_tree():
    for found in run(looked_at, 2):
        assert found.pop("frozen") == [True, True, False, False]
        assert found.pop("adjusted") == 1e-4
        assert all(found.values()), found
