"""Metrics as a user writes them: functions, metrics of torchmetrics, their names, columns and states."""

import collections
import contextlib
import copy
import functools
import math
import random
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from benchmarks import torchvision_here
from fluxlike.learning.checkpoints.packing import pack
from fluxlike.learning.checkpoints.unpacking import unpack
from fluxlike.learning.metrics.accuracy import accuracy
from fluxlike.learning.metrics.collect import as_metrics, computed
from fluxlike.learning.metrics.functions import FunctionMetric
from fluxlike.learning.metrics.torchmetrics import TorchMetric, is_torchmetric

with contextlib.suppress(ImportError):
    torchvision_here.torchvision()  # which torchmetrics imports
torchmetrics = pytest.importorskip("torchmetrics")
tm = torchmetrics.classification


def batches(number=7, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = [8] * (number - 1) + [3]
    return [
        (torch.randn(n, classes, generator=generator), torch.randint(classes, (n,), generator=generator))
        for n in sizes
    ]


def run(meter, data):
    for outputs, targets in data:
        meter.update(outputs, targets, len(targets))
    return meter


def together(data):
    return torch.cat([x for x, _ in data]), torch.cat([y for _, y in data])


METRICS = {
    "accuracy": lambda: tm.MulticlassAccuracy(3),
    "per class": lambda: tm.MulticlassF1Score(3, average=None),
    "list states": lambda: tm.MulticlassAUROC(3, thresholds=None),
    "samplewise": lambda: tm.MulticlassStatScores(3, multidim_average="global", average="none"),
    "composition": lambda: tm.MulticlassAccuracy(3) * 2 + tm.MulticlassRecall(3),
    "wrapper": lambda: torchmetrics.wrappers.ClasswiseWrapper(tm.MulticlassAccuracy(3, average=None)),
    "extremes": lambda: torchmetrics.wrappers.MinMaxMetric(tm.MulticlassAccuracy(3)),
    "collection": lambda: torchmetrics.MetricCollection(
        [tm.MulticlassAccuracy(3), tm.MulticlassRecall(3), tm.MulticlassPrecision(3), tm.MulticlassAUROC(3)],
        prefix="all_",
    ),
}


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("cut", [0, 1, 3, 7])
def test_a_metric_goes_on_from_its_state_to_the_same_bits(name, cut):
    data, metric = batches(), TorchMetric(METRICS[name]())
    whole = run(metric.init(), data)
    state = run(metric.init(), data[:cut]).state()
    said = str(state)
    second = TorchMetric(METRICS[name]()).restore(state)
    assert str(second.state()) == said
    run(second, data[cut:])
    assert str(state) == said
    assert str(second.state()) == str(whole.state())
    assert list(second.compute().items()) == list(whole.compute().items())


@pytest.mark.parametrize("name", METRICS)
def test_a_state_is_plain_values_and_tensors(name):
    def check(value):
        if isinstance(value, dict):
            assert all(isinstance(key, (str, int)) for key in value)
            return all(map(check, value.values()))
        if isinstance(value, (list, tuple)):
            return all(map(check, value))
        return value is None or isinstance(value, (bool, int, float, str, torch.Tensor))

    assert check(run(TorchMetric(METRICS[name]()).init(), batches()).state())


@pytest.mark.parametrize("name", METRICS)
def test_the_object_handed_in_is_never_changed(name):
    theirs = METRICS[name]()
    before = str(torchmetrics.Metric.__getstate__(theirs)) if hasattr(theirs, "_defaults") else str(theirs)
    metric = TorchMetric(theirs)
    run(metric.init(), batches()).compute()
    after = str(torchmetrics.Metric.__getstate__(theirs)) if hasattr(theirs, "_defaults") else str(theirs)
    assert after == before
    theirs.update(*batches()[0])
    alone = TorchMetric(METRICS[name]()).init()
    assert run(metric.init(), batches()[1:]).compute() == run(alone, batches()[1:]).compute()


def test_the_numbers_are_those_of_all_samples_at_once():
    data = batches()
    found = computed([run(m.init(), data) for m in as_metrics([METRICS["list states"](), accuracy])])
    outputs, targets = together(data)
    assert found["MulticlassAUROC"] == float(
        torchmetrics.functional.auroc(outputs, targets, task="multiclass", num_classes=3)
    )
    assert found["accuracy"] == pytest.approx((outputs.argmax(1) == targets).double().mean().item(), abs=1e-7)
    assert [type(v) for v in found.values()] == [float, float]


def test_every_epoch_starts_anew():
    metric, data = TorchMetric(METRICS["accuracy"]()), batches()
    run(metric.init(), data[:3])
    alone = METRICS["accuracy"]()
    alone.update(*data[5])
    assert computed([run(metric.init(), data[5:6])]) == {"MulticlassAccuracy": float(alone.compute())}


def test_a_vector_is_a_column_an_entry_and_a_collection_keeps_its_names():
    data = batches()
    found = [
        list(computed([run(m.init(), data)]))
        for name in ("per class", "wrapper", "collection")
        for m in as_metrics([METRICS[name]()])
    ]
    assert found == [
        [f"MulticlassF1Score_{i}" for i in range(3)],
        [f"multiclassaccuracy_{i}" for i in range(3)],
        [f"all_Multiclass{name}" for name in ("Accuracy", "Recall", "Precision", "AUROC")],
    ]
    named = as_metrics({"mine": METRICS["collection"](), "f1": METRICS["per class"]()})
    assert list(computed([run(m.init(), data) for m in named])) == [
        *(f"mine_all_Multiclass{name}" for name in ("Accuracy", "Recall", "Precision", "AUROC")),
        *(f"f1_{i}" for i in range(3)),
    ]


def test_a_matrix_is_columns_until_there_are_too_many():
    metric = TorchMetric(tm.MulticlassConfusionMatrix(3), "confusion")
    found = computed([run(metric.init(), batches())])
    assert list(found)[:4] == ["confusion_0_0", "confusion_0_1", "confusion_0_2", "confusion_1_0"]
    large = TorchMetric(tm.MulticlassConfusionMatrix(40)).init()
    large.update(torch.randn(4, 40), torch.arange(4), 4)
    with pytest.raises(ValueError, match="'MulticlassConfusionMatrix' gave 1600 numbers"):
        large.compute()


class Gathering(torchmetrics.Metric):
    """One that gathers in an attribute of its own, beside its states."""

    def __init__(self, begin, gather):
        super().__init__()
        self.add_state("total", torch.zeros(()))
        self.kept, self._gather = begin, gather
        self.settings = {"names": ["a"], "kinds": {"x", "y"}, "generator": torch.Generator().manual_seed(3)}
        self.network = nn.Linear(2, 2)

    def update(self, outputs, targets):
        self.kept = self._gather(self.kept)
        self.total += self.kept.item() if isinstance(self.kept, np.generic) else len(self.kept)

    def compute(self):
        return self.total


def one_more(kept):
    return kept + 1


def in_place(kept):
    kept[0] += 1
    return kept


@pytest.mark.parametrize(
    ("begin", "gather"),
    [(np.int64(0), one_more), (np.float32(0.5), one_more), (np.zeros(2), in_place), ([np.int8(3)], in_place)],
    ids=["int64", "float32", "array", "list"],
)
def test_what_a_metric_gathers_in_numpy_is_saved(begin, gather):
    data = batches(8)
    metric = TorchMetric(Gathering(begin, gather))
    state = unpack(pack(run(metric.init(), data[:3]).state()))
    resumed, whole = run(metric.restore(state), data[3:]), run(metric.init(), data)
    assert computed([resumed]) == computed([whole])
    assert repr(resumed._running.kept) == repr(whole._running.kept)


def added(kept):
    return kept | {len(kept)}


class Sized:
    def __init__(self, generator):
        self.generator = generator

    def random(self):
        self.generator.random()

    def __len__(self):
        return 1


def drawn(kept):
    kept.random()
    return kept


def counted(kept):
    kept["a"] += 1
    return kept


@pytest.mark.parametrize(
    ("begin", "gather", "kind"),
    [
        (set(), added, "set"),
        (Sized(np.random.default_rng(0)), drawn, "Sized"),
        (collections.Counter(), counted, "Counter"),
        (collections.defaultdict(int), counted, "defaultdict"),
        (Sized(random.Random(0)), drawn, "Sized"),
    ],
    ids=["set", "generator of numpy", "Counter", "defaultdict", "generator of Python"],
)
def test_what_a_checkpoint_does_not_hold_is_refused_by_its_attribute(begin, gather, kind):
    metric = TorchMetric(torchmetrics.MetricCollection({"mine": Gathering(begin, gather)}), "all")
    meter = metric.init()
    assert set(meter.state()["parts"]["metric.mine"]) == {"total"}
    run(meter, batches(2))
    with pytest.raises(ValueError, match=rf"'all', in its part 'mine', has a {kind} in its attribute 'kept'"):
        meter.state()


def test_a_network_or_a_generator_inside_that_changes_is_refused():
    metric = Gathering([], lambda kept: [*kept, 1])
    for change, name in (
        (lambda m: torch.rand(1, generator=m.settings["generator"]), "settings"),
        (lambda m: nn.init.zeros_(m.network.weight), "_modules"),
    ):
        meter = run(TorchMetric(metric).init(), batches(2))
        meter.state()
        change(meter._running)
        with pytest.raises(ValueError, match=f"in its attribute '{name}', which has changed"):
            meter.state()


def test_an_attribute_that_is_gone_is_told():
    meter = run(TorchMetric(Gathering([], lambda kept: [*kept, 1])).init(), batches(2))
    del meter._running.settings
    with pytest.raises(ValueError, match=r"'Gathering' has lost its attribute 'settings'.*set it to None"):
        meter.state()


def test_no_batch_gives_no_column_and_no_warning():
    assert computed([m.init() for m in as_metrics([METRICS["accuracy"](), accuracy])]) == {}


def test_outputs_with_a_graph_and_outputs_of_several_tensors():
    class Pair(torchmetrics.Metric):
        def __init__(self):
            super().__init__()
            self.add_state("seen", [])

        def update(self, outputs, targets):
            self.seen.append(outputs["a"].sum() + outputs["b"].sum() - targets)

        def compute(self):
            return torch.stack(self.seen).sum()

    assert is_torchmetric(Pair())
    weight = torch.ones(2, requires_grad=True)
    meter = TorchMetric(Pair()).init()
    meter.update({"a": weight * 2, "b": weight}, torch.tensor(1.0), 1)
    (seen,) = meter.state()["parts"]["metric"]["seen"]
    assert not seen.requires_grad
    assert computed([meter]) == {"Pair": 5.0}


def test_a_metric_that_writes_into_its_state_leaves_saved_ones_alone():
    class Total(torchmetrics.Metric):
        def __init__(self):
            super().__init__()
            self.add_state("total", torch.zeros(()))

        def update(self, outputs, targets):
            self.total.add_(outputs.sum())

        def compute(self):
            return self.total

    metric = TorchMetric(Total())
    first = run(metric.init(), batches()[:2])
    state = first.state()
    said = str(state)
    run(first, batches())
    run(metric.restore(state), batches())
    assert str(state) == said
    assert metric.init().state()["parts"]["metric"]["total"] == 0


def test_an_error_of_torchmetrics_has_the_name_and_the_shapes():
    meter = TorchMetric(tm.MulticlassAccuracy(3), "right").init()
    with pytest.raises(ValueError, match=r"'right' does not take outputs of shape \(4, 5\) .* \(4,\)") as e:
        meter.update(torch.randn(4, 5), torch.zeros(4, dtype=torch.long), 4)
    assert e.value.__cause__ is not None


def test_the_state_of_another_metric_is_refused():
    state = TorchMetric(METRICS["collection"]()).init().state()
    with pytest.raises(ValueError, match="state of the metric 'MulticlassAccuracy' has the parts"):
        TorchMetric(METRICS["accuracy"]()).restore(state)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 7), st.integers(1, 9))
def test_a_function_goes_on_from_its_state_to_the_same_bits(cut, seed):
    data, metric = batches(seed=seed), FunctionMetric(nn.functional.cross_entropy)
    whole = run(metric.init(), data)
    second = run(metric.restore(run(metric.init(), data[:cut]).state()), data[cut:])
    assert second.compute() == whole.compute()
    outputs, targets = together(data)
    wanted = nn.functional.cross_entropy(outputs.double(), targets)
    assert whole.compute()["cross_entropy"] == pytest.approx(wanted.item(), rel=1e-6)


def test_names_come_from_functions_classes_and_dicts():
    def right(outputs, targets):
        return 1.0

    given_ = [right, functools.partial(accuracy), nn.MSELoss(), METRICS["accuracy"]()]
    assert [m.name for m in as_metrics(given_)] == ["right", "accuracy", "MSELoss", "MulticlassAccuracy"]
    assert [m.name for m in as_metrics({"a": right, "b": lambda y, t: 1.0})] == ["a", "b"]
    assert [m.name for m in as_metrics(right)] == ["right"]
    assert [m.name for m in as_metrics(METRICS["collection"]())] == ["MetricCollection"]
    assert [m.name for m in as_metrics(as_metrics([right]))] == ["right"]
    assert as_metrics(()) == ()


@pytest.mark.parametrize(
    ("metrics", "error", "says"),
    [
        ("accuracy", TypeError, "'accuracy' is a str, no metric"),
        ([accuracy, 3], TypeError, "3 is a int, no metric"),
        ([nn.MSELoss], TypeError, r"is the class MSELoss; give an object of it"),
        ([tm.MulticlassAccuracy], TypeError, "class MulticlassAccuracy"),
        ([accuracy, accuracy], ValueError, "2 metrics have the name 'accuracy'; name them by a dict"),
        ([lambda y, t: 1.0], ValueError, "a lambda has no name"),
        ({"loss": accuracy}, ValueError, "'loss', which is a column of the history already"),
        ({3: accuracy}, TypeError, "the name of a metric is a string, found 3"),
        ({"b": FunctionMetric(accuracy, "a")}, ValueError, "'a' is called 'b' in the dict"),
    ],
    ids=["string", "number", "class", "their class", "twice", "lambda", "reserved", "key", "two names"],
)
def test_what_is_no_metric_is_refused(metrics, error, says):
    with pytest.raises(error, match=says):
        as_metrics(metrics)


@pytest.mark.parametrize(
    ("function", "error", "says"),
    [
        (lambda y, t: y, TypeError, r"'f' returned a tensor of shape \(8, 3\).* \.float\(\)\.mean\(\)"),
        (lambda y, t: {"a": 1.0}, TypeError, "'f' returned a dict; return one number a batch"),
        (lambda y, t: None, TypeError, "'f' returned a NoneType"),
        (lambda y, t: torch.tensor(1j), TypeError, "torch.complex64"),
    ],
    ids=["tensor", "dict", "nothing", "complex"],
)
def test_a_function_that_gives_no_number_is_named(function, error, says):
    with pytest.raises(error, match=says):
        run(FunctionMetric(function, "f").init(), batches(2))


def test_two_results_of_one_column_are_refused():
    data = batches()
    both = as_metrics({"a": METRICS["per class"](), "a_1": accuracy})
    with pytest.raises(ValueError, match="have the column 'a_1'"):
        computed([run(m.init(), data) for m in both])


def test_nothing_is_read_from_the_device_before_the_end():
    metric = FunctionMetric(accuracy).init()
    for _ in range(100):
        metric.update(torch.ones(4, 3, device="meta"), torch.ones(4, dtype=torch.long, device="meta"), 4)
    assert metric.compute()["accuracy"].is_meta


def test_torchmetrics_is_known_without_its_import(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    assert is_torchmetric(copy.deepcopy(METRICS["accuracy"]()))
    assert not is_torchmetric(nn.Linear(1, 1))
    assert not is_torchmetric(accuracy)


def test_a_meter_of_a_function_may_give_numbers():
    meter = FunctionMetric(lambda y, t: float(y.mean()), "mean").init()
    meter.update(torch.ones(2), None, 2)
    meter.update(torch.zeros(6), None, 6)
    assert math.isclose(computed([meter])["mean"], 0.25)


def test_metrics_of_torchmetrics_say_which_is_better_by_column():
    both = {"accuracy": tm.MulticlassAccuracy(3), "mse": torchmetrics.MeanSquaredError()}
    collection = torchmetrics.MetricCollection(both, prefix="val_")
    assert TorchMetric(both["accuracy"]).higher_is_better is True
    assert TorchMetric(collection).higher_is_better == {"val_accuracy": True, "val_mse": False}
    assert TorchMetric(collection, "all").higher_is_better == {"all_val_accuracy": True, "all_val_mse": False}
    assert TorchMetric(torchmetrics.MeanMetric()).higher_is_better is None
