"""Twenty steps over two, three and four ranks are the twenty steps of one process."""

import pytest
import torch
import torch.nn.functional as F
from torch.distributed.tensor import DTensor

import fluxlike as fl
from fluxlike import distributed as d
from tests.distributed.ranks import run

STEPS, ROWS = 20, 12


def perceptron():
    model = fl.Chain(fl.Dense(8, 12, fl.relu), fl.Dense(12, 7, fl.tanh), fl.Dense(7, 4))
    return model, torch.randn(STEPS, ROWS, 8)


def batchnorm():
    first = fl.Chain(fl.Conv((3, 3), 3, 6, pad=1, bias=False), fl.BatchNorm(6, fl.relu), fl.MaxPool((2, 2)))
    head = fl.Chain(fl.GlobalMeanPool(), fl.flatten, fl.Dense(6, 4))
    return fl.Chain(first, head), torch.randn(STEPS, ROWS, 3, 8, 8)


def tied():
    shared = fl.Dense(8, 8, fl.tanh)
    return fl.Chain(shared, fl.Dense(8, 8), shared, fl.Dense(8, 4)), torch.randn(STEPS, ROWS, 8)


def transformer():
    config = fl.models.GPTConfig(depth=2, dim=24, num_heads=12, vocabulary=11, context=6)
    model = fl.models.GPT(config, dropout=0.0)
    last = fl.Chain(d.separate_projections(model), lambda logits: logits[:, -1, :4])
    return last, torch.randint(11, (STEPS, ROWS, 6))


CASES = {"perceptron": perceptron, "batchnorm": batchnorm, "tied": tied, "transformer": transformer}

PLANS = {
    "replicated": d.replicate,
    "sharded": d.shard,
    "mixed": lambda: d.by_path({r"weight$": d.shard(at_least=40)}),
}

ONE_AXIS = {"tensor parallel": d.tensor_parallel}
TWO_AXES = {
    "tensor parallel": lambda: d.tensor_parallel(rest=d.shard()),
    "tensor parallel, sharded": lambda: d.combined(d.tensor_parallel(), d.shard()),
}

RULES = {
    "AdamW": fl.AdamW(1e-2),
    "clipped and accumulated": fl.OptimiserChain(fl.ClipGlobalNorm(0.1), fl.AccumGrad(2), fl.AdamW(1e-2)),
    "Muon": fl.Muon(1e-2),
}


def cross_entropy(model, x, y):
    return F.cross_entropy(model(x), y)


def step(state, model, x, y):
    value, grads = fl.withgradient(cross_entropy, model, x, y)
    return value, *fl.update(state, model, grads)


def trained(case, rule, place=lambda tree: tree, share=lambda batch: batch, *, compiled=False):
    """The losses of all steps, and the model after them."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    model, x = CASES[case]()
    y = torch.randint(4, (STEPS, ROWS))
    model = place(model)
    state = fl.setup(RULES[rule], model)
    one = fl.jit(step, donate=("state", "model")) if compiled else step
    losses = []
    for k in range(STEPS):
        value, model, state = one(state, model, *share((x[k], y[k])))
        losses.append(float(value))
    return losses, fl.cpu(model)


def on_ranks(case, rule, plan, sizes, compiled=False):
    """The largest distance between a run over a mesh and that of one process."""
    mesh = d.mesh(**sizes)
    how = (TWO_AXES if len(sizes) == 2 else PLANS | ONE_AXIS)[plan]()
    over = trained(
        case,
        rule,
        lambda tree: fl.to_device(tree, mesh, how),
        lambda batch: d.shard_batch(batch, mesh),
        compiled=compiled,
    )
    alone = trained(case, rule)
    far = max(abs(a - b) for a, b in zip(over[0], alone[0], strict=True))
    pairs = zip(fl.fleaves(over[1]), fl.fleaves(alone[1]), strict=True)
    assert all(type(x) is torch.Tensor for x in fl.fleaves(over[1]))
    return max(far, *(float((x.double() - y.double()).abs().max()) for x, y in pairs))


def quickly(*quick):
    """The rules, of which only some are tried in the quick tests."""
    return [pytest.param(r, marks=() if r in quick else pytest.mark.slow) for r in RULES]


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("rule", quickly("clipped and accumulated"))
@pytest.mark.parametrize("case", CASES)
def test_two_ranks_train_as_one(case, rule, plan):
    assert max(run(on_ranks, 2, case, rule, plan, {})) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [3, 4])
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("case", CASES)
def test_three_and_four_ranks_train_as_one(case, plan, ranks):
    assert max(run(on_ranks, ranks, case, "clipped and accumulated", plan, {})) < 1e-10


@pytest.mark.parametrize("rule", quickly("AdamW"))
@pytest.mark.parametrize("ranks", [2, 3])
def test_tensor_parallel_attention_trains_as_one_process(rule, ranks):
    assert max(run(on_ranks, ranks, "transformer", rule, "tensor parallel", {"model": ranks})) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("plan", TWO_AXES)
def test_a_mesh_of_two_axes_trains_as_one_process(rule, plan):
    assert max(run(on_ranks, 4, "transformer", rule, plan, {"data": 2, "model": 2})) < 1e-10


# The transformer compiles for a minute; its mixed plan has parameters of both kinds.
COMPILED = [(case, plan) for case in CASES for plan in PLANS if case != "transformer" or plan == "mixed"]


@pytest.mark.slow
@pytest.mark.parametrize(("case", "plan"), COMPILED)
def test_a_compiled_step_on_two_ranks_trains_as_one_process(case, plan):
    assert max(run(on_ranks, 2, case, "clipped and accumulated", plan, {}, True)) < 1e-10


def bytes_kept(plan):
    """Bytes that this rank keeps of parameters, gradients and moments, and those of one process."""
    mesh = d.mesh()
    model, x = perceptron()
    alone = 4 * sum(x.nbytes for x in fl.trainables(model))
    model = fl.to_device(model, mesh, PLANS[plan]())
    state = fl.setup(fl.AdamW(), model)
    batch = d.shard_batch((x[0], torch.randint(4, (ROWS,))), mesh)
    grads = fl.gradient(cross_entropy, model, *batch)
    model, state = fl.update(state, model, grads)
    kept = [x.to_local() for x in fl.fleaves((model, grads, state)) if isinstance(x, DTensor)]
    memory = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in kept}
    return sum(memory.values()), alone


def test_a_rank_keeps_its_share_of_parameters_gradients_and_state():
    for kept, alone in run(bytes_kept, 2, "sharded"):
        assert kept <= alone / 2 * 1.06  # of an odd number of rows, one rank has one more
    for kept, alone in run(bytes_kept, 2, "replicated"):
        assert kept == alone


def placements(plan):
    mesh = d.mesh()
    model = fl.to_device(fl.Chain(fl.Dense(8, 6), fl.BatchNorm(6), fl.Dense(6, 4)), mesh, PLANS[plan]())
    state = fl.setup(fl.AdamW(), model)
    x, y = d.shard_batch((torch.randn(ROWS, 8), torch.randint(4, (ROWS,))), mesh)
    value, grads = fl.withgradient(cross_entropy, model, x, y)
    model, state = fl.update(state, model, grads)
    found = [(p, x.placements) for p, x in fl.trainables(model, paths=True)]
    assert [(p, x.placements) for p, x in fl.trainables(grads, paths=True)] == found
    for path, where in found:
        entry = fl.at(state, path).get().state
        assert (entry.exp_avg.placements, entry.exp_avg_sq.placements) == (where, where)
    assert all(p.is_replicate() for p in value.placements)
    assert isinstance(model.layers[1].running_mean, DTensor)
    return {path: str(where) for path, where in found}


@pytest.mark.parametrize("plan", PLANS)
def test_gradients_and_state_are_placed_as_their_parameters(plan):
    first, second = run(placements, 2, plan)
    assert first == second
    assert ("Shard" in first[".layers[0].weight"]) == (plan != "replicated")
