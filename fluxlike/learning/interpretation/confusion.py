"""Which classes are taken for which: counts, the pairs most confused, precision and recall."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fluxlike.aligned import aligned
from fluxlike.trees.functor import leaf

__all__ = ["ClassScore", "Confusion", "Report", "confusion_matrix", "most_confused"]


@dataclass(frozen=True)
class Confusion:
    """A class that was taken for another.

    Attributes:
        true: the class.
        predicted: what it was taken for.
        count: how often.
        share: of the observations of the class.
    """

    true: str
    predicted: str
    count: int
    share: float


class ClassScore(NamedTuple):
    """How well one class is told from the others; NaN where there is nothing to divide by.

    Attributes:
        name: the class, or which average.
        precision: the share of the predictions of the class that are right.
        recall: the share of the observations of the class that are found.
        f1: the harmonic mean of both, ``2·TP / (2·TP + FP + FN)``.
        support: how many observations the class has.
    """

    name: str
    precision: float
    recall: float
    f1: float
    support: int


def confusion_matrix(true: Tensor, predicted: Tensor, count: int, /) -> Tensor:
    """Counts of each pair of classes: rows are true, columns predicted.

    Args:
        true: class numbers, int64, of shape (N,).
        predicted: the same.
        count: how many classes, C.

    Returns:
        int64, of shape (C, C).
    """
    return torch.bincount(true * count + predicted, minlength=count * count).reshape(count, count)


def most_confused(matrix: Tensor, classes: Sequence[str], k: int, /) -> list[Confusion]:
    """The pairs of different classes with the largest counts, at most k of them, none that never occur."""
    wrong = matrix.clone().fill_diagonal_(0)
    support = matrix.sum(1).tolist()
    order = wrong.flatten().sort(descending=True, stable=True)
    found = []
    for count, place in zip(order.values[:k].tolist(), order.indices[:k].tolist(), strict=True):
        if count:
            true, predicted = divmod(place, len(classes))
            found.append(Confusion(classes[true], classes[predicted], count, count / support[true]))
    return found


@leaf
class Report:
    """Precision, recall, F1 and support of each class; prints as a table.

    A score that divides by nothing, such as the precision of a class that is never predicted, is NaN, prints
    as a dash, and stays out of the averages.

    Args:
        matrix: the counts, rows true, columns predicted.
        classes: the names.

    Attributes:
        classes: a `ClassScore` a class.
        accuracy: the share of all observations that are right.
        macro: the mean over classes.
        weighted: the mean over classes, each weighted by its support.
    """

    def __init__(self, matrix: Tensor, classes: Sequence[str]) -> None:
        counts = matrix.double()
        hits, support, named = counts.diagonal(), counts.sum(1), counts.sum(0)
        scores = torch.stack([hits / named, hits / support, 2 * hits / (named + support)])
        supports = matrix.sum(1).tolist()
        self.classes = tuple(
            _score(name, row, n) for name, row, n in zip(classes, scores.T, supports, strict=True)
        )
        self.accuracy = (hits.sum() / counts.sum()).item()
        total = int(matrix.sum())
        self.macro = _score("macro average", scores.nanmean(1), total)
        weight = support.expand_as(scores).where(~scores.isnan(), 0)
        weighted = (scores.nan_to_num() * weight).sum(1) / weight.sum(1)
        self.weighted = _score("weighted average", weighted, total)

    def __str__(self) -> str:
        head = ("", "precision", "recall", "F1", "support")
        rows = [_cells(row) for row in self.classes]
        foot = [_cells(self.macro), _cells(self.weighted)]
        lines = list(aligned([head, *rows, *foot], right=range(1, len(head))))
        lines.insert(1 + len(rows), "")
        return "\n".join([*lines, f"accuracy {self.accuracy:.4f}"])

    def __repr__(self) -> str:
        return str(self)


def _score(name: str, scores: Tensor, support: int) -> ClassScore:
    precision, recall, f1 = scores.tolist()
    return ClassScore(name, precision, recall, f1, support)


def _cells(row: ClassScore) -> tuple[str, ...]:
    scores = ("-" if score != score else f"{score:.4f}" for score in row[1:4])
    return row.name, *scores, str(row.support)
