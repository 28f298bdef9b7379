"""Every loss and metric over a mesh: values and gradients of one process, whatever a rank's rows weigh."""

from __future__ import annotations

import inspect
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import fluxlike as fl
from fluxlike import distributed as d
from fluxlike.learning.metrics.accuracy import accuracy
from tests.distributed.agreeing import differences, disagreements, traffic
from tests.distributed.ranks import run

LOSSES = str(Path(__file__).parents[1] / "losses")
if LOSSES not in sys.path:
    sys.path.append(LOSSES)

AGGS = {
    "mean": torch.mean,
    "sum": torch.sum,
    "none": None,
    "own": lambda losses: losses.square().mean().sqrt(),
}


def scaled(loss):
    """A loss of a prediction that a parameter scales."""
    return lambda model, pred, target: loss(model["scale"] * pred, target)


def ours(agg, rows):
    """What each of our losses does otherwise."""
    import loss_rows

    wrong = {}
    for row in loss_rows.ROWS:
        torch.manual_seed(0)
        pred, target = row.pred(), row.target()
        if len(pred) != len(target):
            continue
        chosen = torch.randint(len(pred), (rows,))
        model = {"scale": 1 - 0.01 * torch.rand(pred.shape[1:], dtype=pred.dtype)}
        apart = agg == "none" and row.one_by_one
        found = disagreements(
            scaled(lambda p, t, row=row: row.run(p, t, agg=AGGS[agg])),
            (model, pred[chosen], target[chosen]), "replicate", quiet=apart, shared=apart,
        )  # fmt: skip
        if found:
            wrong[row.name] = found
    return wrong


@pytest.mark.parametrize("agg", AGGS)
def test_our_losses_on_two_ranks_are_those_of_one_process(agg):
    assert run(ours, 2, agg, 6) == [{}, {}]


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "rows"), [(3, 9), (2, 5)])
@pytest.mark.parametrize("agg", AGGS)
def test_our_losses_on_three_ranks_and_with_rows_that_none_can_share(agg, ranks, rows):
    assert run(ours, ranks, agg, rows) == [{}] * ranks


def floats(*shape):
    return lambda rows: torch.randn(rows, *shape, dtype=torch.float64)


def below_one(*shape):
    return lambda rows: torch.rand(rows, *shape, dtype=torch.float64)


def uneven(*shape):
    """Labels of which the ranks have different numbers that count, the first rank none."""

    def make(rows):
        labels = torch.randint(4, (rows, *shape))
        labels[: rows // 3] = -100
        labels[-1:] = 3
        return labels

    return make


def labels(*shape, below=4):
    return lambda rows: torch.randint(below, (rows, *shape))


def signs(*shape):
    return lambda rows: torch.randint(2, (rows, *shape)) * 2 - 1


def weights():
    return torch.tensor([0.3, 2.0, 1.0, 0.1], dtype=torch.float64)


def flat(loss):
    return lambda p, t, **settings: loss(p.flatten(0, 1), t.flatten(), **settings)


def of_time(p, t, reduction):
    lengths = torch.full((len(p),), 7)
    return F.ctc_loss(p.log_softmax(-1).transpose(0, 1), t, lengths, t[:, 0] % 2 + 2, reduction=reduction)


#: A loss, a prediction, a target, and settings.
TORCHS = {
    "mse": (F.mse_loss, floats(4), floats(4), {}),
    "mse of weights": (lambda p, t, **s: F.mse_loss(p, t, weight=t.exp(), **s), floats(4), floats(4), {}),
    "mse of two shapes": (lambda p, t, **s: F.mse_loss(p, t, **s), floats(4), floats(1), {}),
    "l1": (F.l1_loss, floats(4), floats(4), {}),
    "smooth l1": (F.smooth_l1_loss, floats(4), floats(4), {"beta": 0.3}),
    "huber": (F.huber_loss, floats(4), floats(4), {}),
    "cross entropy": (F.cross_entropy, floats(4), labels(), {}),
    "cross entropy, uneven": (F.cross_entropy, floats(4), uneven(), {}),
    "cross entropy, uneven, smooth": (F.cross_entropy, floats(4), uneven(), {"label_smoothing": 0.2}),
    "cross entropy of pixels": (F.cross_entropy, floats(4, 5), uneven(5), {}),
    "cross entropy of tokens": (flat(F.cross_entropy), floats(5, 4), uneven(5), {}),
    "cross entropy of probabilities": (F.cross_entropy, floats(4), below_one(4), {"label_smoothing": 0.2}),
    "cross entropy that ignores": (F.cross_entropy, floats(4), labels(), {"ignore_index": 2}),
    "nll": (lambda p, t, **s: F.nll_loss(p.log_softmax(1), t, **s), floats(4), uneven(), {}),
    "binary": (lambda p, t, **s: F.binary_cross_entropy(p.sigmoid(), t, **s), floats(4), below_one(4), {}),
    "binary of logits": (F.binary_cross_entropy_with_logits, floats(4), below_one(4), {}),
    "kl": (F.kl_div, floats(4), below_one(4), {}),
    "poisson": (F.poisson_nll_loss, floats(4), below_one(4), {}),
    "gaussian": (lambda p, t, **s: F.gaussian_nll_loss(p, t, t + 0.5, **s), floats(4), below_one(4), {}),
    "soft margin": (F.soft_margin_loss, floats(4), signs(4), {}),
    "multi margin": (F.multi_margin_loss, floats(4), labels(), {}),
    "multilabel margin": (F.multilabel_margin_loss, floats(4), labels(4), {}),
    "multilabel soft margin": (F.multilabel_soft_margin_loss, floats(4), labels(4, below=2), {}),
    "cosine": (
        lambda p, t, **s: F.cosine_embedding_loss(p, t, (t[:, 0] > 0) * 2 - 1, **s), floats(4), floats(4), {},
    ),
    "ranking": (lambda p, t, **s: F.margin_ranking_loss(p, 2 * p, t, **s), floats(4), signs(4), {}),
    "hinge": (F.hinge_embedding_loss, floats(4), signs(4), {}),
    "triplet": (lambda p, t, **s: F.triplet_margin_loss(p, t, 2 * t, **s), floats(4), floats(4), {}),
    "ctc": (of_time, floats(7, 4), lambda rows: torch.randint(1, 4, (rows, 3)), {}),
}  # fmt: skip

WEIGHED = [name for name in TORCHS if name.startswith(("cross", "nll"))]


def torchs(reduction, rows):
    """What each of torch's losses does otherwise."""
    warnings.simplefilter("ignore")
    wrong = {}
    for name, (loss, pred, target, settings) in TORCHS.items():
        variants = [{}, {"weight": weights()}] if name in WEIGHED else [{}]
        for more in variants:
            torch.manual_seed(0)
            p, t = pred(rows), target(rows)
            model = {"scale": 1 - 0.01 * torch.rand(p.shape[1:], dtype=p.dtype)}
            apart = reduction == "none" and "tokens" not in name
            found = disagreements(
                scaled(lambda p, t: loss(p, t, reduction=reduction, **settings, **more)),
                (model, p, t), "replicate", quiet=reduction == "none", shared=apart,
            )  # fmt: skip
            if found:
                wrong[f"{name} {list(more)}"] = found
    return wrong


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_torchs_losses_on_two_ranks_are_those_of_one_process(reduction):
    assert run(torchs, 2, reduction, 6) == [{}, {}]


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "rows"), [(3, 9), (2, 5)])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_torchs_losses_on_three_ranks_and_with_rows_that_none_can_share(reduction, ranks, rows):
    assert run(torchs, ranks, reduction, rows) == [{}] * ranks


def nothing_counts():
    pred, target = torch.randn(6, 4).double(), torch.full((6,), -100)
    over = d.shard_batch((pred, target), d.mesh())
    return float(F.cross_entropy(*over)), float(F.cross_entropy(pred, target))


def test_the_mean_of_no_targets_is_nan_as_on_one_process():
    for found, expected in run(nothing_counts, 2):
        assert found != found
        assert expected != expected


def old_arguments():
    pred, target = torch.randn(6, 4).double(), torch.randn(6, 4).double()
    over = d.shard_batch((pred, target), d.mesh())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return differences(
            [F.mse_loss(*over, size_average=False), F.mse_loss(*over, reduce=False)],
            [F.mse_loss(pred, target, size_average=False), F.mse_loss(pred, target, reduce=False)],
        )


def test_the_arguments_of_old_for_reductions_still_say_what_they_said():
    assert run(old_arguments, 2) == [[], []]


def sizes_that_do_not_fit():
    pred, target = (
        torch.randn(6, 4),
        torch.randint(4, (3,)),
    )  # three rows are as many as a rank has of the six
    with pytest.raises((ValueError, RuntimeError), match="6"):
        F.cross_entropy(d.shard_batch(pred, d.mesh()), target)


def test_a_target_of_as_many_rows_as_a_rank_has_is_refused():
    run(sizes_that_do_not_fit, 2)


def one_collective():
    pred, target = d.shard_batch((torch.randn(6, 4), torch.randint(4, (6,))), d.mesh())
    found = [
        traffic(lambda: F.mse_loss(pred, pred + 1).item()),
        traffic(lambda: F.cross_entropy(pred, target).item()),
        traffic(lambda: fl.losses.logitcrossentropy(pred, target).item()),
    ]
    return [sum(counts.values()) for counts in found]


def test_a_mean_takes_one_collective_and_that_of_classes_another_for_its_weights():
    assert run(one_collective, 2) == [[1, 2, 2], [1, 2, 2]]


def metrics(rows):
    torch.manual_seed(0)
    scores, classes = torch.randn(rows, 4), torch.randint(4, (rows,))
    over = d.shard_batch((scores, classes), d.mesh())
    pixels = torch.randn(rows, 4, 3, 3), torch.randint(4, (rows, 3, 3))
    over_pixels = d.shard_batch(pixels, d.mesh())
    hot = F.one_hot(classes, 4)
    return differences(
        [
            accuracy(*over), accuracy(*over_pixels), accuracy(over[0][:, 0], over[1] > 1),
            accuracy(over[0], d.shard_batch(hot, d.mesh())), (over[0].argmax(1) == over[1]).float().mean(),
            over[0].topk(2, 1).indices.eq(over[1][:, None]).any(1).float().mean(),
        ],
        [
            accuracy(scores, classes), accuracy(*pixels), accuracy(scores[:, 0], classes > 1),
            accuracy(scores, hot), (scores.argmax(1) == classes).float().mean(),
            scores.topk(2, 1).indices.eq(classes[:, None]).any(1).float().mean(),
        ], 1e-6,
    )  # fmt: skip


@pytest.mark.parametrize("rows", [6, 5])
def test_metrics_are_those_of_one_process(rows):
    assert run(metrics, 2, rows) == [[], []]


def test_every_loss_of_ours_is_in_the_table():
    import loss_rows

    tested = {row.loss for row in loss_rows.ROWS}
    functions = {getattr(fl.losses, name) for name in fl.losses.__all__} - {fl.losses.label_smoothing}
    assert {f for f in functions if inspect.isfunction(f)} <= tested
