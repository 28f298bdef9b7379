"""What `estimate` says of ranks that are not there is what ranks that are there hold and send."""

import gc
import sys
from dataclasses import astuple, replace

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.profiler import ProfilerActivity, profile

import fluxlike as fl
from fluxlike._private import collectives
from fluxlike._private.fake_ranks import fake_mesh
from fluxlike.distributed import (
    replicate,
    separate_projections,
    shard,
    shard_batch,
    tensor_parallel,
)
from fluxlike.distributed.planner import estimate
from fluxlike.distributed.planner_traffic import communication
from tests.distributed.ranks import run

pytestmark = pytest.mark.slow  # processes take a while to start and to meet


def squares(model, x, y):
    return (model(x) - y).square().mean()


def entropy(model, x, y):
    return fl.losses.logitcrossentropy(model(x), y, dim=-1)


def perceptron():
    model = fl.Chain(fl.Dense(64, 256, fl.gelu), fl.Dense(256, 250, fl.relu), fl.Dense(250, 8))
    return squares, model, (torch.randn(64, 64), torch.randn(64, 8))


def gpt(dropout=0.0):
    config = fl.models.GPTConfig(depth=2, dim=64, num_heads=4, vocabulary=128, context=64)
    return entropy, fl.models.GPT(config, dropout=dropout), (torch.randint(128, (8, 64)),) * 2


def gpt_apart():
    loss, model, batch = gpt()
    return loss, separate_projections(model), batch


def convolutions():
    layers = [fl.Conv((3, 3), 3, 16, pad=1), fl.BatchNorm(16, fl.relu), fl.MaxPool((2, 2))]
    more = [
        fl.Conv((3, 3), 16, 32),
        fl.BatchNorm(32, fl.relu),
        fl.GlobalMeanPool(),
        fl.flatten,
        fl.Dense(32, 10),
    ]
    return entropy, fl.Chain(*layers, *more), (torch.randn(16, 3, 16, 16), torch.randint(10, (16,)))


def resnet():
    return entropy, fl.models.ResNet(18), (torch.randn(8, 3, 64, 64), torch.randint(1000, (8,)))


MODELS = {
    "mlp": perceptron,
    "gpt": gpt,
    "tensor parallel gpt": gpt_apart,
    "cnn": convolutions,
    "resnet": resnet,
}
PLANS = {"replicate": replicate, "shard": shard, "tensor parallel": lambda: tensor_parallel(rest=shard())}
RULES = {"adamw": fl.AdamW, "clipped": lambda: fl.OptimiserChain(fl.ClipGlobalNorm(1.0), fl.AdamW())}


def bytes_of(tree):
    parts = {id(x): x.to_local() if isinstance(x, DTensor) else x for x in fl.fleaves(tree)}
    return sum(x.nbytes for x in parts.values())


def merged(rows):
    """Counts and bytes by kind and axis."""
    found = {}
    for row in rows:
        count, size = found.get((row.kind, row.axis), (0, 0))
        found[row.kind, row.axis] = count + row.count, size + row.bytes
    return found


def on_ranks(model, plan, sizes, rule):
    """On real ranks: what is estimated before, what is measured, what is estimated after."""
    loss, model, batch = MODELS[model]()
    plan, rule = PLANS[plan](), RULES[rule]()
    before = estimate(loss, model, *batch, mesh=sizes, plan=plan, rule=rule)
    mesh = init_device_mesh("cpu", tuple(sizes.values()), mesh_dim_names=tuple(sizes))
    placed, shares = fl.to_device(model, mesh, plan), shard_batch(batch, mesh)
    state = fl.setup(rule, placed)
    with communication(mesh) as traffic:
        value, grads = fl.withgradient(loss, placed, *shares)
        fl.update(state, placed, grads)
    alone = fl.withgradient(loss, model, *batch)[0]
    torch.testing.assert_close(value.full_tensor() if isinstance(value, DTensor) else value, alone)
    trained = bytes_of(fl.trainables(placed))
    measured = {
        "parameters": trained,
        "buffers": bytes_of(placed) - trained,
        "gradients": bytes_of(fl.trainables(grads)),
        "state": bytes_of(state),
        "batch": bytes_of(shares),
        "sent": merged(traffic.rows),
    }
    after = estimate(loss, model, *batch, mesh=mesh, plan=plan, rule=rule)
    return before, measured, after


@pytest.mark.parametrize(
    ("model", "plan", "sizes", "rule"),
    [
        ("mlp", "shard", {"data": 2}, "clipped"),
        ("mlp", "shard", {"data": 4}, "adamw"),
        ("gpt", "shard", {"data": 2}, "adamw"),
        ("gpt", "replicate", {"data": 2}, "clipped"),
        ("tensor parallel gpt", "tensor parallel", {"data": 2, "model": 2}, "adamw"),
        ("cnn", "shard", {"data": 2}, "adamw"),
        ("cnn", "replicate", {"data": 4}, "adamw"),
        pytest.param("resnet", "shard", {"data": 2}, "adamw", marks=pytest.mark.slow),
        pytest.param("resnet", "replicate", {"data": 4}, "clipped", marks=pytest.mark.slow),
    ],
)
def test_the_estimate_is_what_rank_0_holds_and_sends(model, plan, sizes, rule):
    ranks = 1
    for n in sizes.values():
        ranks *= n
    before, measured, after = run(on_ranks, ranks, model, plan, sizes, rule)[0]
    assert before.peak == pytest.approx(after.peak, rel=0.01)
    assert before == replace(after, peak=before.peak)
    for name in ("parameters", "gradients", "state", "buffers", "batch"):
        assert getattr(before, name) == measured[name], name
    assert merged(before.sent) == measured["sent"]
    assert before.bytes_sent > 0


MARK = 12343  # bytes that nothing else allocates


def allocated(step):
    """What the allocator says: held when the backward pass begins, and the most ever, beyond the start."""
    gc.collect()  # what earlier steps left would be freed during this one
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    found = [
        x
        for x in tree(profiled.profiler.kineto_results.experimental_event_tree())
        if hasattr(x, "alloc_size")
    ]
    sizes = [(x.total_allocated, x.alloc_size) for x in found]
    start = sizes[0][0] - sizes[0][1]
    marked = next(total for total, size in sizes if size == MARK)
    return marked - MARK - start, max(total for total, _ in sizes) - start


def tree(events):
    for event in events:
        yield event.typed[1]
        yield from tree(event.children)


@pytest.mark.parametrize("plan", ["replicate", "shard"])
@pytest.mark.parametrize("model", ["mlp", "gpt", "cnn"])
def test_activations_and_peak_are_what_the_allocator_gives_a_rank(model, plan):
    loss, model, batch = MODELS[model]()
    told = estimate(loss, model, *batch, mesh={"data": 4}, plan=PLANS[plan]())

    def marked(model, *batch):
        value = loss(model, *batch)
        value.register_hook(lambda _: (torch.empty(MARK, dtype=torch.uint8), None)[1])
        return value

    with fake_mesh((4,), ("data",), "cpu") as mesh:  # numbers here; what comes from others has none
        placed, shares = fl.to_device(model, mesh, PLANS[plan]()), shard_batch(batch, mesh)
        runs = [allocated(lambda: fl.gradient(marked, placed, *shares)) for _ in range(5)]
        held, most = (
            sorted(values)[2] for values in zip(*runs, strict=True)
        )  # the profiler may lose a block
    assert told.activations + told.gathered == pytest.approx(held, rel=0.01)
    resident = told.parameters + told.buffers + told.batch
    assert told.peak - resident == pytest.approx(most, rel=0.07)


def test_a_checkpoint_keeps_less():
    loss, model, batch = perceptron()
    x, y = batch
    thrifty = fl.Chain(fl.checkpoint(fl.Chain(*model.layers[:2])), model.layers[2])
    plain, kept = (estimate(loss, m, x, y, mesh={"data": 2}, plan=shard()) for m in (model, thrifty))
    assert kept.activations < 0.7 * plain.activations
    assert kept.parameters == plain.parameters


def test_sharding_divides_what_is_kept_and_replicating_does_not():
    loss, model, batch = gpt()
    whole = estimate(loss, model, *batch, mesh={"data": 8}, plan=replicate(), rule=fl.AdamW())
    parts = estimate(loss, model, *batch, mesh={"data": 8}, plan=shard(), rule=fl.AdamW())
    assert whole.parameters == bytes_of(model)
    for name in ("parameters", "gradients"):
        assert getattr(parts, name) * 8 == getattr(whole, name)
    assert parts.batch == whole.batch == bytes_of(batch) // 8  # of one tensor at two places


def test_a_tied_parameter_counts_once():
    shared, x = fl.Dense(16, 16), torch.ones(4, 16)
    one, two = (
        estimate(lambda m, x: m(x).sum(), fl.Chain(*layers), x, mesh={"data": 2}, rule=fl.AdamW())
        for layers in ([shared], [shared, shared])
    )
    for name in ("parameters", "gradients", "state"):
        assert getattr(one, name) == getattr(two, name)


def ddp():
    """Bytes that DDP sends in a step, and what it has."""
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Linear(32, 7))
    wrapped = torch.nn.parallel.DistributedDataParallel(model)
    with communication() as traffic:
        wrapped(torch.randn(4, 64)).square().sum().backward()
    return traffic.bytes, sum(p.nbytes for p in model.parameters())


def test_ddp_sends_what_the_replicated_plan_sends():
    sent, parameters = run(ddp, 2)[0]
    assert sent == {"all_reduce": parameters}
    model, x = fl.Chain(fl.Dense(64, 32), fl.Dense(32, 7)), torch.randn(8, 64)
    told = estimate(lambda m, x: m(x).square().sum(), model, x, mesh={"data": 2})
    assert sum(r.bytes for r in told.sent) == parameters + 4  # and the loss


def fsdp2():
    from torch.distributed.fsdp import fully_shard

    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Linear(32, 8))
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)), reshard_after_forward=True)
    with communication() as traffic:
        model(torch.randn(4, 64)).square().sum().backward()
    return traffic.bytes


def test_fsdp2_sends_what_the_sharded_plan_sends():
    sent = run(fsdp2, 2)[0]
    model, x = fl.Chain(fl.Dense(64, 32), fl.Dense(32, 8)), torch.randn(8, 64)
    told = merged(estimate(lambda m, x: m(x).square().sum(), model, x, mesh={"data": 2}, plan=shard()).sent)
    assert sent["reduce_scatter"] == told["reduce_scatter", "data"][1] == bytes_of(model) // 2
    assert sent["all_gather"] == 2 * bytes_of(model) // 2


def by_hand():
    """Each collective of torch.distributed once, of 24 bytes."""
    x, n, found = torch.ones(6), dist.get_world_size(), {}

    def count(name, call):
        with communication() as traffic:
            call()
        found[name] = traffic.bytes, traffic.total

    count("all_reduce", lambda: dist.all_reduce(x))
    count("all_gather", lambda: dist.all_gather_into_tensor(x.new_empty(6 * n), x))
    count("list", lambda: dist.all_gather([torch.empty(6) for _ in range(n)], x))
    count("reduce_scatter", lambda: dist.reduce_scatter_tensor(x.new_empty(6 // n), x))
    count("broadcast", lambda: dist.broadcast(x, 0))
    count("all_to_all", lambda: dist.all_to_all_single(x.new_empty(6), x))
    count("barrier", dist.barrier)
    count("functional", lambda: collectives.all_reduce(x, init_device_mesh("cpu", (n,)), 0))
    return found


def test_each_collective_counts_as_a_ring_sends_it():
    found = run(by_hand, 3)[0]
    assert found == {
        "all_reduce": ({"all_reduce": 32}, 32),
        "all_gather": ({"all_gather": 48}, 48),
        "list": ({"all_gather": 48}, 48),
        "reduce_scatter": ({"reduce_scatter": 16}, 16),
        "broadcast": ({"broadcast": 16}, 16),
        "all_to_all": ({"all_to_all": 16}, 16),
        "barrier": ({}, 0),
        "functional": ({"all_reduce": 32}, 32),
    }


def test_traffic_names_axes_and_phases_and_prints_a_table():
    with fake_mesh((2, 4), ("data", "model"), "cpu") as mesh, communication(mesh) as traffic:
        collectives.all_reduce(torch.ones(8), mesh, 0)
        collectives.all_gather(torch.ones(8), mesh, 1)
    assert [astuple(row) for row in traffic.rows] == [
        ("all_reduce", "data", "forward", 1, 32),
        ("all_gather", "model", "forward", 1, 96),
    ]
    assert traffic.counts == {"all_reduce": 1, "all_gather": 1}
    assert str(traffic).splitlines() == [
        "collective  axis   phase    count       sent",
        "all_reduce  data   forward      1   32 bytes",
        "all_gather  model  forward      1   96 bytes",
        "total                           2  128 bytes",
    ]


def of_gpt(config, mesh, plan, rows):
    with torch.device("meta"):
        model = separate_projections(fl.models.GPT(config, dropout=0.0))
        tokens = torch.empty(rows, config.context, dtype=torch.long)
    return model, estimate(entropy, model, tokens, tokens, mesh=mesh, plan=plan, rule=fl.AdamW())


def large(depth, dim, heads, context):
    return fl.models.GPTConfig(depth=depth, dim=dim, num_heads=heads, vocabulary=32000, context=context)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "mesh", "plan"),
    [
        (large(32, 4096, 32, 2048), {"data": 64}, "shard"),
        (large(32, 4096, 32, 2048), {"data": 64}, "replicate"),
        (large(80, 8192, 64, 4096), {"data": 512}, "shard"),
        (large(80, 8192, 64, 4096), {"data": 64, "model": 8}, "tensor parallel"),
    ],
)
def test_a_large_model_on_many_ranks_takes_little_time_and_no_memory(config, mesh, plan):
    import resource

    scale = 1 if sys.platform == "darwin" else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
    model, told = of_gpt(config, mesh, PLANS[plan](), 2 * mesh["data"])
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale - before
    ranks = mesh["data"] * mesh.get("model", 1)
    whole = sum(x.nbytes for x in fl.trainables(model))
    divided = {"replicate": 1, "shard": ranks, "tensor parallel": 8}[plan]
    assert whole / ranks <= told.parameters <= 1.02 * whole / divided
    assert told.state == pytest.approx(2 * told.parameters, rel=1e-3)
    assert told.activations > 0
    assert grown < 2**30


@pytest.mark.filterwarnings("ignore:DTensor random operators")
def test_it_leaves_no_trace():
    loss, model, batch = gpt(dropout=0.1)
    kept = [x.clone() for x in fl.trainables(model)]
    state = torch.get_rng_state()
    estimate(loss, model, *batch, mesh={"data": 2}, plan=shard(), rule=fl.AdamW())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(kept, fl.trainables(model), strict=True))
    assert not dist.is_initialized()
    key = fl.Key(0)
    with fl.seeded(key):
        first = fl.random.normal((3,))
    with fl.seeded(key):
        estimate(loss, model, *batch, mesh={"data": 2})
        assert torch.equal(fl.random.normal((3,)), first)


def test_what_it_refuses():
    model, x = fl.Dense(4, 2), torch.ones(8, 4)
    with pytest.raises(TypeError, match=r'mesh={"data": 64}, or a mesh'):
        estimate(lambda m, x: m(x).sum(), model, x, mesh=64)
    with pytest.raises(ValueError, match="the size of an axis is a whole number from 1 on"):
        estimate(lambda m, x: m(x).sum(), model, x, mesh={"data": 0})
    with pytest.raises(RuntimeError, match=r"asks for one \(.item\(\)"):
        estimate(lambda m, x: m(x).sum() * F.relu(x).sum().item(), model, x, mesh={"data": 2})


def test_it_prints_as_two_tables():
    model, x = fl.Dense(64, 8, bias=False), torch.ones(8, 64)
    told = estimate(lambda m, x: m(x).sum(), model, x, mesh={"data": 4}, plan=shard())
    lines = str(told).splitlines()
    assert lines[0] == "A rank of 4 (data=4)"
    names = [
        "memory",
        "parameters",
        "gradients",
        "state",
        "buffers",
        "batch",
        "activations",
        "gathered",
        "peak",
    ]
    assert [line.split()[0] for line in lines[1:10]] == names
    assert lines[2].split() == ["parameters", "512", "bytes"]
    assert lines[11].split() == ["collective", "axis", "phase", "count", "sent"]
    assert lines[-1].split()[0] == "total"
