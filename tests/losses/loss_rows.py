"""The table of losses: a row a loss and form of target; `test_loss_table.py` holds the promises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fluxlike import losses

EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class Row:
    """A loss, and how torch computes it entry by entry.

    Attributes:
        name: the row's name in the tests.
        loss: ours.
        twin: torch's function of the same meaning with ``reduction="none"``, or the formula in plain torch.
        pred: makes the prediction in float64. The first axis is the batch.
        target: makes the target.
        settings: keyword arguments of ours.
        mean: torch's mean, where it is another than that of the entries.
        edge: predictions at the edge of what is allowed, beside `edge_target`.
        one_by_one: whether there is an entry for each of the batch.
        error: the largest in float32, in spacings of the dtype at 1 relative to the largest entry.
    """

    name: str
    loss: Callable[..., Any]
    twin: Callable[[Tensor, Tensor], Tensor]
    pred: Callable[[], Tensor]
    target: Callable[[], Tensor]
    settings: dict[str, Any] = field(default_factory=dict)
    mean: Callable[[Tensor, Tensor], Tensor] | None = None
    edge: tuple[Tensor, Tensor] | None = None
    one_by_one: bool = True
    error: float = 4

    def run(self, pred: Tensor, target: Tensor, **more: Any) -> Any:
        return self.loss(pred, target, **self.settings, **more)


def scores(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(shape, dtype=torch.float64)


def probabilities(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(shape, dtype=torch.float64).softmax(1)


def between(*shape: int) -> Callable[[], Tensor]:
    """Numbers inside (0, 1)."""
    return lambda: 0.05 + 0.9 * torch.rand(shape, dtype=torch.float64)


def labels(*shape: int, below: int = 4, low: int = 0) -> Callable[[], Tensor]:
    return lambda: torch.randint(low, below, shape)


def signs(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randint(2, shape) * 2 - 1


def onehot(target: Tensor, n: int = 4) -> Tensor:
    return F.one_hot(target, n).movedim(-1, 1).double()


def none(f: Callable[..., Tensor], **settings: Any) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda pred, target: f(pred, target, reduction="none", **settings)


def reduced(f: Callable[..., Tensor], **settings: Any) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda pred, target: f(pred, target, reduction="mean", **settings)


WHOLE = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
OPPOSITE = torch.tensor([[0.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
EDGE = WHOLE, OPPOSITE  # probabilities that are certain, and right and wrong


def clamped(pred: Tensor, target: Tensor) -> Tensor:
    return -target * (pred + EPS).log() - (1 - target) * (1 - pred + EPS).log()


def divergence(pred: Tensor, target: Tensor) -> Tensor:
    return F.kl_div((pred + EPS).log(), target, reduction="none").sum(1)


def of_counts(pred: Tensor, target: Tensor) -> Tensor:
    return F.poisson_nll_loss(pred, target, log_input=False, eps=EPS, reduction="none")


def focal(gamma: float) -> Callable[[Tensor, Tensor], Tensor]:
    def twin(pred: Tensor, target: Tensor) -> Tensor:
        if target.is_floating_point():
            return -(target * (1 - pred) ** gamma * (pred + EPS).log()).sum(1)
        p = pred.gather(1, target.unsqueeze(1)).squeeze(1)
        return -((1 - p) ** gamma) * (p + EPS).log()

    return twin


def binary_focal(gamma: float) -> Callable[[Tensor, Tensor], Tensor]:
    def twin(pred: Tensor, target: Tensor) -> Tensor:
        p = torch.where(target == 1, pred, 1 - pred)
        return -((1 - p) ** gamma) * (p + EPS).log()

    return twin


def contrastive(margin: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda d, y: torch.where(y == 0, d**2, F.relu(margin - d) ** 2)


def dice(*axes: int) -> Callable[[Tensor, Tensor], Tensor]:
    def twin(p: Tensor, y: Tensor) -> Tensor:
        return 1 - (2 * (p * y).sum(axes) + 1) / ((p**2).sum(axes) + (y**2).sum(axes) + 1)

    return twin


def tversky(beta: float, *axes: int) -> Callable[[Tensor, Tensor], Tensor]:
    def twin(p: Tensor, y: Tensor) -> Tensor:
        hit, extra, missed = (x.sum(axes) for x in (p * y, p * (1 - y), (1 - p) * y))
        return 1 - (hit + 1) / (hit + (1 - beta) * extra + beta * missed + 1)

    return twin


ROWS = [
    Row("mse", losses.mse, none(F.mse_loss), scores(3, 4), scores(3, 4)),
    Row("mae", losses.mae, none(F.l1_loss), scores(3, 4), scores(3, 4)),
    Row("huber", losses.huber, none(F.huber_loss), lambda: 2 * scores(3, 4)(), scores(3, 4)),
    Row(
        "huber .3", losses.huber, none(F.huber_loss, delta=0.3), scores(3, 4), scores(3, 4),
        settings={"delta": 0.3},
    ),
    Row(
        "msle", losses.msle, lambda p, t: ((p + EPS) / (t + EPS)).log() ** 2, between(3, 4), between(3, 4),
        edge=EDGE, error=12,
    ),
    Row(
        "msle eps=1", losses.msle, lambda p, t: (p.log1p() - t.log1p()) ** 2, between(3, 4), between(3, 4),
        settings={"eps": 1.0},
    ),
    Row("poisson", losses.poisson, of_counts, between(3, 4), labels(3, 4), edge=EDGE),
    Row("poisson of floats", losses.poisson, of_counts, between(3, 4), between(3, 4)),
    Row("binarycrossentropy", losses.binarycrossentropy, clamped, between(3, 4), between(3, 4), edge=EDGE),
    Row(
        "logitbinarycrossentropy", losses.logitbinarycrossentropy,
        none(F.binary_cross_entropy_with_logits), lambda: 3 * scores(3, 4)(), between(3, 4),
    ),
    Row(
        "logitbinarycrossentropy pos_weight", losses.logitbinarycrossentropy,
        none(F.binary_cross_entropy_with_logits, pos_weight=torch.tensor(3.0).double()),
        lambda: 3 * scores(3, 4)(), between(3, 4), settings={"pos_weight": 3.0},
    ),
    Row(
        "logitbinarycrossentropy pos_weight of images", losses.logitbinarycrossentropy,
        none(F.binary_cross_entropy_with_logits, pos_weight=torch.tensor([3.0, 0.5]).double()[:, None, None]),
        scores(3, 2, 4, 5), between(3, 2, 4, 5), settings={"pos_weight": torch.tensor([3.0, 0.5])},
    ),
    Row(
        "binary_focal", losses.binary_focal, binary_focal(2), between(3, 4), lambda: labels(3, 4, below=2)(),
        edge=EDGE,
    ),
    Row(
        "binary_focal 0.5", losses.binary_focal, binary_focal(0.5), between(3, 4), labels(3, 4, below=2),
        settings={"gamma": 0.5}, edge=EDGE,
    ),
    Row("hinge", losses.hinge, lambda p, t: (1 - p * t).clamp(min=0), scores(3, 4), signs(3, 4)),
    Row(
        "squared_hinge", losses.squared_hinge, lambda p, t: (1 - p * t).clamp(min=0) ** 2,
        scores(3, 4), signs(3, 4),
    ),
    Row(
        "siamese_contrastive", losses.siamese_contrastive, contrastive(1), lambda: 2 * between(8)(),
        labels(8, below=2), edge=(torch.zeros(2).double(), torch.tensor([0.0, 1.0]).double()),
    ),
    Row(
        "siamese_contrastive 2", losses.siamese_contrastive, contrastive(2), lambda: 3 * between(8)(),
        labels(8, below=2), settings={"margin": 2.0},
    ),
    Row(
        "dice_coeff", losses.dice_coeff, dice(), between(3, 2, 4, 4), labels(3, 2, 4, 4, below=2),
        one_by_one=False, edge=(torch.zeros(2, 2).double(), torch.zeros(2, 2).double()),
    ),
    Row(
        "dice_coeff by image and class", losses.dice_coeff, dice(2, 3), between(3, 2, 4, 4),
        labels(3, 2, 4, 4, below=2), settings={"dim": (2, 3)},
    ),
    Row(
        "tversky", losses.tversky, tversky(0.7), between(3, 2, 4, 4), labels(3, 2, 4, 4, below=2),
        one_by_one=False, edge=(torch.zeros(2, 2).double(), torch.zeros(2, 2).double()),
    ),
    Row(
        "tversky by image", losses.tversky, tversky(0.2, 1), between(3, 16), labels(3, 16, below=2),
        settings={"dim": 1, "beta": 0.2},
    ),
    Row("kldivergence", losses.kldivergence, divergence, probabilities(5, 4), probabilities(5, 4), edge=EDGE),
    Row("kldivergence 3-d", losses.kldivergence, divergence, probabilities(5, 4, 3), probabilities(5, 4, 3)),
]  # fmt: skip

WEIGHT = torch.tensor([0.3, 2.0, 1.0, 0.1], dtype=torch.float64)
CERTAIN = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)


def logs(pred: Tensor) -> Tensor:
    return (pred + EPS).log()


def log_first(pred: Tensor, target: Tensor) -> Tensor:
    if target.is_floating_point():
        return -(target * logs(pred)).sum(1)
    return F.nll_loss(logs(pred), target, reduction="none")


for shape in ((5,), (5, 3), (2, 3, 3), (2, 2, 2, 2)):
    full = (shape[0], 4, *shape[1:])
    rank = f"{len(full)}-d"
    for kind, make in (
        ("indices", labels(*shape)),
        ("one-hot", lambda s=shape: onehot(labels(*s)())),
        ("soft", probabilities(*full)),
    ):
        cross = none(F.cross_entropy)
        ROWS += [
            Row(f"logitcrossentropy of {kind} {rank}", losses.logitcrossentropy, cross, scores(*full), make),
            Row(f"crossentropy of {kind} {rank}", losses.crossentropy, log_first, probabilities(*full), make),
            Row(f"focal of {kind} {rank}", losses.focal, focal(2), probabilities(*full), make),
        ]

for name, settings, target in (
    ("weights of indices", {"weight": WEIGHT}, labels(3, 5)),
    ("weights of soft labels", {"weight": WEIGHT}, probabilities(3, 4, 5)),
    ("ignored indices", {"ignore_index": 2}, labels(3, 5)),
    ("ignored -100", {"ignore_index": -100}, lambda: torch.where(labels(3, 5)() == 0, -100, labels(3, 5)())),
    ("smoothing of indices", {"label_smoothing": 0.2}, labels(3, 5)),
    ("smoothing of soft labels", {"label_smoothing": 0.2}, probabilities(3, 4, 5)),
    (
        "all at once",
        {"weight": WEIGHT, "ignore_index": -7, "label_smoothing": 0.3},
        lambda: torch.where(labels(3, 5)() == 0, -7, labels(3, 5)()),
    ),
    ("weight, smoothing, soft", {"weight": WEIGHT, "label_smoothing": 0.3}, probabilities(3, 4, 5)),
):
    ROWS.append(
        Row(
            f"logitcrossentropy with {name}", losses.logitcrossentropy, none(F.cross_entropy, **settings),
            scores(3, 4, 5), target, settings, mean=reduced(F.cross_entropy, **settings),
        )
    )  # fmt: skip

for name, settings in (
    ("weights", {"weight": WEIGHT}),
    ("ignored", {"ignore_index": 2}),
    ("both", {"weight": WEIGHT, "ignore_index": 1}),
):
    ROWS += [
        Row(
            f"crossentropy with {name}", losses.crossentropy,
            lambda p, t, s=settings: F.nll_loss(logs(p), t, reduction="none", **s),
            probabilities(3, 4, 5), labels(3, 5), settings,
            mean=lambda p, t, s=settings: F.nll_loss(logs(p), t, **s),
        ),
        Row(
            f"focal with {name}", losses.focal,
            lambda p, t, s=settings: F.nll_loss((1 - p) ** 2 * logs(p), t, reduction="none", **s),
            probabilities(3, 4, 5), labels(3, 5), settings,
            mean=lambda p, t, s=settings: F.nll_loss((1 - p) ** 2 * logs(p), t, **s),
        ),
    ]  # fmt: skip

ROWS += [
    Row(
        "focal 0.5", losses.focal, focal(0.5), probabilities(5, 4), labels(5), settings={"gamma": 0.5},
        edge=(CERTAIN, torch.tensor([0, 0])),
    ),
    Row(
        "crossentropy at the edge", losses.crossentropy, log_first, probabilities(5, 4), labels(5),
        edge=(CERTAIN, torch.tensor([0, 0])),
    ),
    Row(
        "crossentropy with smoothing", losses.crossentropy,
        lambda p, t: -((0.8 * onehot(t) + 0.05) * logs(p)).sum(1), probabilities(5, 4), labels(5),
        settings={"label_smoothing": 0.2},
    ),
]  # fmt: skip

INPUTS, TARGETS = torch.tensor([7, 5, 6]), torch.tensor([3, 1, 2])


def ctc(pred: Tensor, target: Tensor, **settings: Any) -> Tensor:
    lengths = settings.pop("lengths", torch.full((pred.shape[0],), pred.shape[1]))
    of_target = settings.pop("target_lengths", torch.full((pred.shape[0],), target.shape[1]))
    first = pred.log_softmax(-1).transpose(0, 1)
    return F.ctc_loss(first, target, lengths, of_target, reduction="none", **settings)


ROWS += [
    Row("ctc", losses.ctc, ctc, scores(3, 7, 4), labels(3, 3, low=1)),
    Row(
        "ctc with repeats, the last class blank", losses.ctc,
        lambda p, t: ctc(p, t, blank=3), scores(3, 7, 4),
        lambda: torch.tensor([[1, 1, 1], [0, 0, 2], [2, 1, 1]]), settings={"blank": -1},
    ),
    Row("ctc of one label", losses.ctc, ctc, scores(3, 4, 2), labels(3, 1, below=2, low=1)),
]  # fmt: skip
