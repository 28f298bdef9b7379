"""Interpretation: numbers agree with scikit-learn's, nothing is changed, mistakes are told."""

import functools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics
from torch.nn import functional as F

import fluxlike as fl
from fluxlike.learning.interpretation.interpret import interpret
from fluxlike.scope.mode import training

LOSS = fl.losses.logitcrossentropy


def scored(n=60, count=4, seed=0):
    """Scores, which are their own model's outputs, and classes."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, count, (n,), generator=generator)
    scores = torch.randn(n, count, generator=generator)
    scores[torch.arange(n), y] += 1
    return scores, y


def batches(scores, y, size=7):
    return list(zip(scores.split(size), y.split(size), strict=True))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(2, 6), st.integers(1, 50), st.integers(0, 2**20))
def test_the_confusion_matrix_is_scikit_learns(n, count, size, seed):
    scores, y = scored(n, count, seed)
    found = interpret(fl.identity, batches(scores, y, size), classes=range(count))
    wanted = metrics.confusion_matrix(y, scores.argmax(1), labels=range(count))
    assert found.confusion_matrix().tolist() == wanted.tolist()
    assert len(found) == n


@pytest.mark.parametrize("seed", range(3))
def test_the_report_is_scikit_learns(seed):
    scores, y = scored(30, 8, seed)  # so few that some class is never predicted
    report = interpret(fl.identity, [(scores, y)]).report()
    wanted = metrics.classification_report(
        y, scores.argmax(1), labels=range(8), output_dict=True, zero_division=np.nan
    )
    for row in report.classes:
        theirs = wanted[row.name]
        for name in ("precision", "recall", "support"):
            assert getattr(row, name) == pytest.approx(theirs[name], nan_ok=True)
        assert row.f1 == pytest.approx(theirs["f1-score"], nan_ok=True)
    for row, name in ((report.macro, "macro avg"), (report.weighted, "weighted avg")):
        assert row.precision == pytest.approx(wanted[name]["precision"])
        assert row.recall == pytest.approx(wanted[name]["recall"])
        assert row.f1 == pytest.approx(wanted[name]["f1-score"])
    assert report.accuracy == pytest.approx(metrics.accuracy_score(y, scores.argmax(1)))


def test_a_report_prints_as_a_table_with_dashes_for_what_is_not_defined():
    scores = torch.tensor([[2.0, 0, 0], [2.0, 0, 0], [0, 2.0, 0]])
    lines = str(interpret(fl.identity, [(scores, torch.tensor([0, 1, 1]))]).report()).splitlines()
    assert lines[0].split() == ["precision", "recall", "F1", "support"]
    assert lines[1].split() == ["0", "0.5000", "1.0000", "0.6667", "1"]
    assert lines[3].split() == ["2", "-", "-", "-", "0"]
    assert lines[-1] == "accuracy 0.6667"
    assert len({len(line) for line in lines[:4]}) == 1


def by_hand(outputs, y):
    return F.cross_entropy(outputs, y)


@pytest.mark.parametrize(
    "loss", [LOSS, functools.partial(LOSS), by_hand], ids=["with agg", "partial", "one at a time"]
)
def test_top_losses_are_the_largest_losses_of_single_observations(loss):
    scores, y = scored()
    found = interpret(fl.identity, batches(scores, y), loss).top_losses(5)
    each = F.cross_entropy(scores, y, reduction="none")
    wanted = each.topk(5)
    assert [x.index for x in found] == wanted.indices.tolist()
    assert [x.loss for x in found] == pytest.approx(wanted.values.tolist())
    shares = scores.softmax(1)
    for x in found:
        assert x.true == str(y[x.index].item())
        assert x.predicted == str(scores[x.index].argmax().item())
        assert x.probability == pytest.approx(shares[x.index].max().item())
        assert x.probability_of_true == pytest.approx(shares[x.index, y[x.index]].item())


def test_a_loss_of_many_entries_is_averaged_over_those_of_an_observation():
    scores, y = scored(10, 3)
    targets = fl.onehotbatch(y, range(3))
    found = interpret(fl.identity, [(scores, targets)], fl.losses.mse)
    assert torch.allclose(found.losses, (scores - targets).square().mean(1))


def test_a_loss_of_whole_batches_is_taken_of_each_observation_alone():
    shares = scored(6, 3)[0].softmax(1)
    targets = fl.onehotbatch(torch.tensor([0, 1, 2, 0, 1, 2]), range(3))
    found = interpret(fl.identity, [(shares, targets)], fl.losses.dice_coeff, probabilities=fl.identity)
    wanted = [fl.losses.dice_coeff(shares[i : i + 1], targets[i : i + 1]) for i in range(6)]
    assert torch.allclose(found.losses, torch.stack(wanted))


def test_a_loss_that_is_nan_comes_first():
    scores, y = scored(8, 3)
    scores[5, 0] = math.nan
    found = interpret(
        fl.identity, batches(scores, y, 3), LOSS, probabilities=lambda z: z.nan_to_num().softmax(1)
    )
    assert found.top_losses(2)[0].index == 5
    assert 5 in found.inputs


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=str)
def test_outputs_that_are_not_finite_are_no_predictions(bad):
    scores, y = scored(8, 3)
    scores[5] = bad
    with pytest.raises(ValueError, match=r"observation 2 of batch 1 are \[nan, nan, nan\]"):
        interpret(fl.identity, batches(scores, y, 3), LOSS)


@pytest.mark.parametrize("size", [1, 4, 100])
def test_the_inputs_kept_are_those_of_the_largest_losses(size):
    scores, y = scored(40)
    found = interpret(fl.identity, batches(scores, y, size), LOSS, inputs=6)
    rows = found.top_losses(6)
    assert list(found.inputs) == [row.index for row in rows]
    for index, x in found.inputs.items():
        assert torch.equal(x, scores[index])
        assert x.untyped_storage().nbytes() == x.nbytes  # not the whole batch


def test_inputs_may_be_trees():
    scores, y = scored(5, 2)
    data = [({"a": scores, "b": (torch.arange(5),)}, y)]
    found = interpret(lambda x: x["a"], data, LOSS, inputs=2)
    index = found.top_losses(1)[0].index
    assert found.inputs[index]["b"][0] == index


def test_any_iterable_gives_the_same():
    scores, y = scored()
    theirs = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(scores, y), batch_size=11)
    ours = fl.DataLoader((scores, y), batch_size=16)
    results = [interpret(fl.identity, data, LOSS) for data in (theirs, ours, iter(batches(scores, y)))]
    assert all(torch.equal(r.losses, results[0].losses) for r in results)
    assert all(torch.equal(r.confusion_matrix(), results[0].confusion_matrix()) for r in results)


def test_one_score_means_two_classes():
    z, y = torch.tensor([-1.0, 2.0, 0.5]), torch.tensor([0.0, 0.0, 1.0])
    for scores in (z, z[:, None]):
        targets = y.reshape(scores.shape)
        found = interpret(fl.identity, [(scores, targets)], fl.losses.logitbinarycrossentropy)
        assert found.confusion_matrix().tolist() == [[1, 1], [0, 1]]
        assert torch.allclose(found.probability_of_true, torch.where(y > 0, z.sigmoid(), 1 - z.sigmoid()))


def test_the_model_runs_in_test_mode_without_a_graph_and_is_not_changed():
    seen = []

    def spy(x):
        seen.append((training(), torch.is_grad_enabled()))
        return x

    model = fl.Chain(fl.Dense(4, 3), fl.BatchNorm(3), fl.Dropout(0.9), spy)
    before = {name: x.clone() for name, x in fl.state_dict(model).items() if isinstance(x, torch.Tensor)}
    state = torch.get_rng_state()
    with fl.mode("train"):
        interpret(model, [(torch.ones(6, 4), torch.zeros(6).long())], LOSS)
    assert seen == [(False, False)]
    after = fl.state_dict(model)
    assert all(torch.equal(after[name], x) for name, x in before.items())
    assert torch.equal(state, torch.get_rng_state())


def test_most_confused_are_the_pairs_off_the_diagonal():
    scores = torch.eye(3)[[0, 1, 1, 2, 2, 2, 0]]
    y = torch.tensor([0, 0, 0, 1, 1, 2, 1])
    found = interpret(fl.identity, [(scores, y)], classes=["a", "b", "c"])
    rows = [(x.true, x.predicted, x.count, round(x.share, 3)) for x in found.most_confused()]
    assert rows == [("a", "b", 2, 0.667), ("b", "c", 2, 0.667), ("b", "a", 1, 0.333)]
    assert len(found.most_confused(1)) == 1
    assert str(found).splitlines() == [
        "2 of 7 right (28.57%), 3 classes",
        "a taken for b: 2 (66.7%)",
        "b taken for c: 2 (66.7%)",
        "b taken for a: 1 (33.3%)",
    ]


X, Y = scored(6, 3)
MISTAKES = {
    "no pair": ((fl.identity, (X, Y)), {}, TypeError, r"batch 0 is a Tensor; expected a pair \(x, y\)"),
    "triple": ((fl.identity, [(X, Y), (X, Y, Y)]), {}, TypeError, "batch 1 is a tuple of 3"),
    "numpy": ((fl.identity, [(X, Y.numpy())]), {}, TypeError, "targets of batch 0 are a ndarray"),
    "module": ((torch.nn.Linear(3, 3), [(X, Y)]), {}, TypeError, r"give fluxlike.from_torch\(module\)"),
    "no model": ((3, [(X, Y)]), {}, TypeError, "the model is a int, which can't be called"),
    "nothing": ((fl.identity, []), {}, ValueError, "holds no observation"),
    "names": ((fl.identity, [(X, Y)]), {"classes": ["a"]}, ValueError, "1 classes are named.*of 3"),
    "beyond": ((fl.identity, [(X, Y + 1)]), {}, ValueError, "hold 3; expected class numbers from 0 to 2"),
    "regression": ((fl.identity, [(X, X[:, 0])]), {}, ValueError, "expected class numbers from 0 to 2"),
    "shape": ((fl.identity, [(X, Y[:4])]), {}, ValueError, r"shape \(4,\); for 6 predictions of 3"),
    "maps": ((lambda x: x[..., None], [(X, Y)]), {}, ValueError, r"outputs are of the shape \(6, 3, 1\)"),
    "scores": (
        (fl.identity, [(X, Y)]),
        {"probabilities": fl.identity},
        ValueError,
        "leave probabilities= out",
    ),
    "classes change": ((fl.identity, [(X, Y), (X[:, :2], Y % 2)]), {}, ValueError, "gives 3 classes, then 2"),
    "loss": ((fl.identity, [(X, Y)], lambda o, y: o), {}, ValueError, r"of the shape \(1, 3\), no number"),
    "inputs": ((fl.identity, [(X, Y)], LOSS), {"inputs": -1}, ValueError, "inputs=-1"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_says_what_to_write(name):
    arguments, named, kind, match = MISTAKES[name]
    with pytest.raises(kind, match=match):
        interpret(*arguments, **named)


def test_top_losses_need_a_loss():
    found = interpret(fl.identity, [(X, Y)])
    with pytest.raises(ValueError, match=r"write interpret\(model, data, loss\)"):
        found.top_losses()
    with pytest.raises(ValueError, match="whole number of at least 1"):
        found.most_confused(0)


def test_a_learner_is_interpreted_on_what_it_validates_on():
    x, y = torch.randn(30, 4), torch.randint(3, (30,))
    data = {"training": [(x[:20], y[:20])], "validation": [(x[20:], y[20:])]}
    learner = fl.Learner(
        fl.Dense(4, 3), data, fl.EMA(fl.Adam(0.1)), fl.losses.logitcrossentropy, progress=False
    )
    learner = fl.fit(learner.replace(averaged=True), 2)
    found = fl.interpret(learner)
    model = fl.averaged(learner.state, learner.model)
    assert torch.equal(found.predicted, model(x[20:]).argmax(1))
    assert found.top_losses(1)[0].loss == pytest.approx(found.losses.max().item())
    assert len(fl.interpret(learner, data["training"]).true) == 20


def test_a_model_needs_data_to_be_interpreted():
    with pytest.raises(TypeError, match=r"write interpret\(model, data\), or interpret\(learner\)"):
        fl.interpret(fl.Dense(4, 3))
