"""A Learner over a mesh: what one process computes, on every rank; written and shown by the first alone."""

import contextlib
import io
import signal
import time

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

import fluxlike as fl
from benchmarks import torchvision_here
from fluxlike.placement.mesh.plans import replicate, shard
from tests.distributed.ranks import RankError, run

pytestmark = pytest.mark.slow  # processes take a while to start and to meet

CLOSE = {"rel": 1e-10, "abs": 1e-12}


def images(n=44):
    """Digits of noise: 8 by 8, with a bright row that says the class."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 5, (n,), generator=generator)
    x = torch.randn(n, 1, 8, 8, generator=generator, dtype=torch.float64)
    x[torch.arange(n), 0, y] += 1
    return x, y


def network(dropout=0.0):
    with fl.seeded(fl.Key(3)):
        model = fl.Chain(
            fl.Conv((3, 3), 1, 4), fl.BatchNorm(4), fl.relu, fl.flatten, fl.Dropout(dropout), fl.Dense(144, 5)
        )
    return fl.f64(model)


def error(outputs, targets):
    return (outputs.argmax(1) != targets).double().mean()


def learner(mesh=None, plan=None, **options):
    """Shuffled batches of 8 and a last one of 4; validation by 6 and a last one of 3."""
    x, y = images()
    training = fl.DataLoader((x, y), 8, shuffle=True, key=fl.Key(1), device=mesh)
    validation = fl.DataLoader((x[:21], y[:21]), 6, device=mesh)
    model = network()
    if mesh is not None:
        model = fl.to_device(model, mesh, shard() if plan is None else plan)
    options = {"progress": False, "metrics": {"error": error}, "key": fl.Key(5)} | options
    return fl.Learner(
        model, (training, validation), fl.AdamW(1e-2, eps=1e-3), fl.losses.logitcrossentropy, **options
    )


def over_all():
    return init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("data",))


def result(found):
    """What is compared: the tables without seconds, and the model."""
    epochs = [{k: v for k, v in row.items() if k != "seconds"} for row in found.history.epochs]
    model = [x for x in fl.fleaves(fl.cpu(found.model)) if isinstance(x, torch.Tensor)]
    return epochs, [dict(row) for row in found.history.steps], model


def require_close(found, wanted):
    for rows, others in zip(found[:2], wanted[:2], strict=True):
        assert len(rows) == len(others)
        for row, other in zip(rows, others, strict=True):
            numbers, wanted_numbers = ({k: v for k, v in r.items() if k != "phase"} for r in (row, other))
            assert row["phase"] == other["phase"]
            assert numbers == pytest.approx(wanted_numbers, **CLOSE)
    for a, b in zip(found[2], wanted[2], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


PLANS = {"replicate": replicate, "shard": shard}


def fitted(plan, options):
    found = fl.fit(learner(over_all(), PLANS[plan](), **options), 2)
    return result(found), list(found.history.epochs["seconds"]), fl.validate(found)


@pytest.mark.parametrize(("ranks", "plan"), [(2, "replicate"), (2, "shard"), (3, "shard")])
def test_a_fit_gives_the_numbers_of_one_process_on_every_rank(ranks, plan):
    alone = fl.fit(learner(), 2)
    found = run(fitted, ranks, plan, {})
    for of_rank, _, validated in found:
        require_close(of_rank, result(alone))
        assert validated == pytest.approx(fl.validate(alone), **CLOSE)
    assert all(of_rank[:2] == found[0][0][:2] and seconds == found[0][1] for of_rank, seconds, _ in found)


def metrics_of_all_kinds():
    torchvision_here.torchvision()  # which torchmetrics imports
    from torchmetrics import MetricCollection
    from torchmetrics.classification import MulticlassAUROC, MulticlassConfusionMatrix

    return [
        fl.metrics.accuracy,
        MetricCollection([MulticlassAUROC(5), MulticlassConfusionMatrix(5)]),
        Largest(),
    ]


class Largest:
    """A metric of a user, which knows nothing of ranks."""

    name = "largest"

    def init(self):
        return Largest.Meter()

    def restore(self, state):
        raise NotImplementedError

    class Meter:
        def __init__(self):
            self.value = 0.0

        def update(self, outputs, targets, n):
            assert len(outputs) == n
            self.value = max(self.value, outputs.abs().max().item())

        def compute(self):
            return {"largest": self.value}

        def state(self):
            return {"value": self.value}


def fitted_with_metrics():
    return result(fl.fit(learner(over_all(), metrics=metrics_of_all_kinds()), 1))


def test_metrics_of_every_kind_see_each_row_once():
    alone = result(fl.fit(learner(metrics=metrics_of_all_kinds()), 1))
    assert sum(v for k, v in alone[0][0].items() if "ConfusionMatrix" in k) == 44
    for found in run(fitted_with_metrics, 2):
        require_close(found, alone)


def without_keys():
    torch.manual_seed(dist.get_rank())
    x, y = images()
    mesh = over_all()
    data = fl.DataLoader((x, y), 8, shuffle=True, device=mesh)
    made = fl.Learner(
        fl.to_device(network(), mesh), data, fl.Descent(0.1), fl.losses.logitcrossentropy, progress=False
    )
    return result(fl.fit(made, 2))


def test_without_keys_the_ranks_take_those_of_the_first():
    found = run(without_keys, 2)
    torch.manual_seed(0)
    data = fl.DataLoader(images(), 8, shuffle=True)
    made = fl.Learner(network(), data, fl.Descent(0.1), fl.losses.logitcrossentropy, progress=False)
    alone = result(fl.fit(made, 2))
    for of_rank in found:
        require_close(of_rank, alone)


def dropping_out():
    torch.manual_seed(dist.get_rank())
    mesh, (x, y) = over_all(), images()
    data = fl.DataLoader((x, y), 8, shuffle=True, key=fl.Key(1), device=mesh)
    model = fl.to_device(network(dropout=0.5), mesh)
    made = fl.Learner(model, data, fl.Descent(0.1), fl.losses.logitcrossentropy, progress=False)
    found = fl.fit(made, 2)
    return result(found), found.key.data.tolist()


def test_dropout_without_a_key_draws_for_every_row_alone():
    (found, (low, high)), (other, _) = run(dropping_out, 2)
    data = fl.DataLoader(images(), 8, shuffle=True, key=fl.Key(1))
    options = {"progress": False, "key": fl.Key(low | high << 32)}
    made = fl.Learner(network(dropout=0.5), data, fl.Descent(0.1), fl.losses.logitcrossentropy, **options)
    alone = result(fl.fit(made, 2))
    require_close(found, alone)
    require_close(other, alone)


def with_keys_that_differ():
    fl.fit(learner(over_all(), key=fl.Key(dist.get_rank())), 1)


def at_different_places():
    made = learner(over_all())
    fl.fit(made.replace(step=dist.get_rank()), 1)


def with_a_model_on_one_device():
    data = learner(over_all()).data
    fl.fit(fl.Learner(network(), data, fl.AdamW(), fl.losses.logitcrossentropy, progress=False), 1)


def with_a_state_left_over_the_mesh():
    learner(over_all()).replace(model=network())


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (with_keys_that_differ, "rank 0 and rank 1 have different keys.*key=fluxlike.Key"),
        (at_different_places, "step is 0 on rank 0 and 1 on rank 1"),
        (
            with_a_model_on_one_device,
            r"the data of training is over a mesh, and the model is on cpu at \.layers",
        ),
        (
            with_a_state_left_over_the_mesh,
            r"the state of \.layers\[0\]\.weight is over the mesh .*, and the parameter on cpu",
        ),
    ],
)
def test_learners_that_do_not_fit_each_other_are_refused(function, message):
    with pytest.raises(RankError) as found:
        run(function, 2)
    assert found.match("(?s)" + message)


class PressedOnOneRank(fl.Callback):
    """Ctrl-C on rank 1 alone, in the middle of step 4."""

    def step_begin(self, run):
        if run.step == 3 and dist.get_rank() == 1:
            signal.raise_signal(signal.SIGINT)


def interrupted(goal):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        found = fl.fit(learner(over_all(), callbacks=[PressedOnOneRank()]), goal)
    finally:
        signal.signal(signal.SIGINT, before)
    at = found.stopped, found.epoch, found.phase, found.batch, found.step
    rest = fl.fit(found.replace(callbacks=learner().callbacks), goal - found.epoch)
    return at, result(rest)


def test_ctrl_c_on_one_rank_ends_all_after_the_same_step_and_the_fit_goes_on_from_there():
    alone = result(fl.fit(learner(), 2))
    for at, rest in run(interrupted, 2, 2):
        assert at == ("interrupted", 0, 0, 5, 5)  # one step after that in which it was pressed
        require_close(rest, alone)


class Slow(fl.Callback):
    """Rank 1 is slower than rank 0."""

    def step_begin(self, run):
        time.sleep(0.02 * dist.get_rank())


class Count(fl.Callback):
    """Needs all ranks at once, as what looks at a whole tensor does."""

    def init(self):
        return {"steps": []}

    def step_end(self, run):
        dist.barrier()
        run.memory["steps"] = [*run.memory["steps"], run.step]


def throttled():
    callbacks = [Slow(), fl.callbacks.throttle(Count(), seconds=0.05)]
    found = fl.fit(learner(over_all(), callbacks=callbacks), 3)
    return found.memory["Count"]["inside"]["steps"]


def test_a_throttle_by_the_clock_calls_on_all_ranks_at_the_same_steps():
    first, second = run(throttled, 2)
    assert first == second
    assert first  # how many depends on the clock


def stopped_early(patience):
    stop = fl.callbacks.EarlyStopping("error", patience=patience)
    return result(fl.fit(learner(over_all(), callbacks=[stop]), 20))


def test_early_stopping_decides_alike():
    alone = result(fl.fit(learner(callbacks=[fl.callbacks.EarlyStopping("error", patience=2)]), 20))
    assert len(alone[0]) < 40
    for found in run(stopped_early, 2, 2):
        require_close(found, alone)


def logged(folder):
    logs = fl.logs.CSVLog(f"{folder}/run.csv"), fl.logs.JSONLinesLog(f"{folder}/run.jsonl")
    callbacks = [
        fl.callbacks.LogMetrics(logs[0], every=2),
        fl.callbacks.LogHistograms(logs[1]),
        fl.callbacks.LogGradients(logs[1], every=3),
        fl.callbacks.LogHyperParams(logs[1]),
        fl.callbacks.Profiler(),
        fl.callbacks.SanityCheck(),
    ]
    shown = io.StringIO()
    with contextlib.redirect_stderr(shown):
        found = fl.fit(learner(over_all(), callbacks=callbacks, progress=True), 2)
    return result(found), shown.getvalue()


def test_the_first_rank_alone_shows_progress_and_writes_logs(tmp_path):
    plain = result(fl.fit(learner(), 2))
    (first, shown), (second, silent) = run(logged, 2, str(tmp_path))
    require_close(first, plain)
    require_close(second, plain)
    assert shown.count(" 1/2 ") == shown.count("callbacks") == 1
    assert silent == ""
    rows = (tmp_path / "run.csv").read_text().splitlines()
    assert len(rows) == 1 + 6  # steps 2, 4, 6 with the ends of epoch 1, and so on
    names = [line for line in (tmp_path / "run.jsonl").read_text().splitlines() if "histogram" in line]
    assert len(names) == 2 * 6 + 4 * 6  # six parameters, after 2 epochs and 4 times their gradients


def not_finite():
    x, y = images(8)
    x[6] = float("nan")
    mesh = over_all()
    data = fl.DataLoader((x, y), 8, device=mesh)
    made = fl.Learner(
        fl.to_device(network(), mesh), data, fl.Adam(), fl.losses.logitcrossentropy, progress=False
    )
    try:
        fl.fit(made, 1)
    except fl.callbacks.NonFiniteLoss as error:
        return str(error)
    return "no error"


def test_a_loss_that_is_not_finite_ends_all_ranks_with_one_message():
    first, second = run(not_finite, 2)
    assert first == second
    assert "the batch holds NaN or Inf at [0]" in first


def searched():
    found = fl.find_lr(learner(over_all()), steps=20)
    return found.losses, found.falls, found.steepest


def test_the_search_for_a_rate_finds_that_of_one_process():
    alone = fl.find_lr(learner(), steps=20)
    for losses, falls, steepest in run(searched, 2):
        assert losses == pytest.approx(alone.losses, **CLOSE)
        assert falls == alone.falls
        assert steepest == pytest.approx(alone.steepest, **CLOSE)


def interpreted():
    found = learner(over_all())
    data = fl.DataLoader(images(), 8)
    over = fl.DataLoader(images(), 8, device=over_all())
    return [fl.interpret(found, d).confusion_matrix().tolist() for d in (data, over)]


def test_predictions_are_interpreted_as_by_one_process():
    alone = fl.interpret(learner(), fl.DataLoader(images(), 8)).confusion_matrix().tolist()
    assert run(interpreted, 2) == [[alone, alone]] * 2
