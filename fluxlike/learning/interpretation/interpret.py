"""`interpret`: what a model gets wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fluxlike.learning.interpretation.confusion import (
    Confusion,
    Report,
    confusion_matrix,
    most_confused,
)
from fluxlike.learning.interpretation.predictions import (
    Predicted,
    Probabilities,
    class_names,
    class_probabilities,
    predicted_batches,
)
from fluxlike.learning.interpretation.top_losses import KeptInputs, TopLoss, losses_of_each, rank
from fluxlike.learning.learner import Learner
from fluxlike.learning.step import SupervisedStep
from fluxlike.optimisers.averages import averaged
from fluxlike.trees.functor import leaf

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fluxlike.learning.interpretation.images import Denormalise

__all__ = ["Interpretation", "interpret"]


def interpret(
    model: Any,
    data: Iterable[Any] | None = None,
    /,
    loss: Callable[..., Any] | None = None,
    *,
    classes: Sequence[Any] | None = None,
    probabilities: Probabilities = class_probabilities,
    inputs: int = 25,
) -> Interpretation:
    """Run a model of classes over data, and look at what it gets wrong.

    The model runs in test mode, without a graph, on its own device, once over the data. In memory stay a few
    numbers an observation, and the inputs of the largest losses.

    Args:
        model: a model of classes, whose outputs are scores (N, C), or (N,) or (N, 1) for two classes; or a
            `Learner` of one.
        data: batches ``(x, y)``: a `DataLoader`, a list, torch's loader. The targets are class numbers (N,)
            or one-hot vectors (N, C). (default: what a learner validates on)
        loss: a function ``loss(outputs, y)``, as in training. One that takes ``agg``, as those in `losses`,
            gives the losses of a batch at once; any other is called an observation at a time.
            (default: that of a learner; else none, so there are no top losses)
        classes: the names of all classes, in order. (default: their numbers)
        probabilities: a function of the outputs that returns probabilities (N, C), such as `identity` where
            the model ends in a softmax. (default: softmax of C scores, sigmoid of one)
        inputs: of how many of the largest losses to keep the inputs, to be shown. (default: 25)

    Returns:
        An `Interpretation`.

    Raises:
        TypeError: the model is a torch module or can't be called, or a batch is no pair.
        ValueError: outputs or targets that are not of classes, probabilities that are not finite, other
            classes than names, or no data.

    Example:
        >>> import torch, fluxlike as fl
        >>> from fluxlike.learning.interpretation.interpret import interpret
        >>> scores = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
        >>> loader = fl.DataLoader((scores, torch.tensor([0, 1, 1])), batch_size=2)
        >>> found = interpret(fl.identity, loader, fl.losses.logitcrossentropy, classes=["cat", "dog"])
        >>> found.confusion_matrix()
        tensor([[1, 0],
                [1, 1]])
        >>> worst = found.top_losses(1)[0]
        >>> worst.index, worst.true, worst.predicted
        (1, 'dog', 'cat')
    """
    if isinstance(model, Learner):
        model, data, loss = _of_learner(model, data, loss)
    elif data is None:
        raise TypeError("interpret needs batches too: write interpret(model, data), or interpret(learner)")
    if not isinstance(inputs, int) or inputs < 0:
        raise ValueError(f"inputs={inputs!r}: write how many inputs to keep, at least 0")
    parts: list[list[Tensor]] = []
    kept = KeptInputs(0 if loss is None else inputs)
    seen, count = 0, None
    for batch in predicted_batches(model, data, probabilities):
        if count not in (None, batch.probabilities.shape[1]):
            raise ValueError(f"the model gives {count} classes, then {batch.probabilities.shape[1]}")
        count = batch.probabilities.shape[1]
        numbers = _numbers(batch, loss)
        if loss is not None:
            kept.take(seen, numbers[-1], batch.x)
        parts.append(numbers)
        seen += len(batch.true)
    if not seen or count is None:
        raise ValueError("the data holds no observation to interpret")
    return Interpretation(
        class_names(classes, count), [torch.cat(x) for x in zip(*parts, strict=True)], kept.inputs
    )


def _of_learner(learner: Learner, data: Any, loss: Any) -> tuple[Any, Any, Any]:
    model = averaged(learner.state, learner.model) if learner.averaged else learner.model
    if data is None:
        data = learner.data.get("validation", learner.data.get("training"))
    if loss is None and isinstance(learner.steps, SupervisedStep):
        loss = learner.steps.criterion
    return model, data, loss


def _numbers(batch: Predicted, loss: Callable[..., Any] | None) -> list[Tensor]:
    """Of each observation the class, that predicted, the probabilities of both, and the loss; on the CPU."""
    probability, predicted = batch.probabilities.max(1)
    of_true = batch.probabilities.gather(1, batch.true[:, None])[:, 0]
    found = [batch.true, predicted, probability, of_true]
    if loss is not None:
        with torch.no_grad():
            found.append(losses_of_each(loss, batch.outputs, batch.y))
    return [x.cpu() for x in found]


@leaf
class Interpretation:
    """What a model gets wrong; made by `interpret`. Prints as a few lines.

    Attributes:
        classes: the names of the classes.
        true: the class numbers of the targets, int64, of shape (N,).
        predicted: the class numbers predicted, int64, of shape (N,).
        probability: of the class predicted, of shape (N,).
        probability_of_true: of the class of the target, of shape (N,).
        losses: of each observation, of shape (N,); None without a loss.
        inputs: the inputs of the largest losses, by index.

    Example:
        >>> import torch, fluxlike as fl
        >>> scores, targets = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 3.0]]), torch.tensor([0, 1, 1])
        >>> fl.interpret(fl.identity, [(scores, targets)], classes=["cat", "dog"])
        2 of 3 right (66.67%), 2 classes
        dog taken for cat: 1 (50.0%)
    """

    def __init__(self, classes: tuple[str, ...], numbers: Sequence[Tensor], inputs: dict[int, Any]) -> None:
        self.classes, self.inputs = classes, inputs
        self.true, self.predicted, self.probability, self.probability_of_true = numbers[:4]
        self.losses = numbers[4] if len(numbers) > 4 else None

    def __len__(self) -> int:
        return len(self.true)

    def confusion_matrix(self) -> Tensor:
        """How often each class was taken for each: int64, of shape (C, C), rows true, columns predicted."""
        return confusion_matrix(self.true, self.predicted, len(self.classes))

    def most_confused(self, k: int = 10) -> list[Confusion]:
        """The pairs of classes that are confused most often, at most `k`, the most frequent first."""
        _require_count("most_confused", k)
        return most_confused(self.confusion_matrix(), self.classes, k)

    def report(self) -> Report:
        """Precision, recall, F1 and support of each class, and their averages, as a table."""
        return Report(self.confusion_matrix(), self.classes)

    def top_losses(self, k: int = 10) -> list[TopLoss]:
        """The observations of the largest losses, the largest first, at most `k`; NaN is larger than all.

        Raises:
            ValueError: there was no loss.
        """
        _require_count("top_losses", k)
        if self.losses is None:
            raise ValueError(
                "there are no losses: write interpret(model, data, loss), with the loss of training"
            )
        largest = sorted(enumerate(self.losses.tolist()), key=rank)[:k]
        return [self._top_loss(index, value) for index, value in largest]

    def _top_loss(self, index: int, value: float) -> TopLoss:
        return TopLoss(
            value,
            index,
            self.classes[self.true[index]],
            self.classes[self.predicted[index]],
            self.probability[index].item(),
            self.probability_of_true[index].item(),
        )

    def plot_confusion_matrix(self) -> Figure:
        """A picture of the confusion matrix: colours are shares of a true class, numbers are counts.

        Raises:
            ImportError: matplotlib is not installed: ``pip install 'fluxlike[training]'``.
        """
        from fluxlike.learning.interpretation.show import confusion_figure

        return confusion_figure(self.confusion_matrix(), self.classes)

    def show_top_losses(self, k: int = 9, *, denormalise: Denormalise | None = None) -> Figure:
        """The pictures of the largest losses.

        Args:
            k: how many, no more than inputs were kept. (default: 9)
            denormalise: the mean and the standard deviation of each channel by which images were normalised.
                (default: they are of numbers from 0 to 1)

        Raises:
            ValueError: inputs that are no images (see `show_predictions`), or that were not kept.
            ImportError: matplotlib is not installed: ``pip install 'fluxlike[training]'``.
        """
        from fluxlike.learning.interpretation.show import top_losses_figure

        rows = self.top_losses(k)
        if any(row.index not in self.inputs for row in rows):
            raise ValueError(f"{len(self.inputs)} inputs were kept; write interpret(..., inputs={k})")
        return top_losses_figure(rows, [self.inputs[row.index] for row in rows], denormalise)

    def __str__(self) -> str:
        right = int((self.true == self.predicted).sum())
        lines = [f"{right} of {len(self)} right ({right / len(self):.2%}), {len(self.classes)} classes"]
        lines += [
            f"{x.true} taken for {x.predicted}: {x.count} ({x.share:.1%})" for x in self.most_confused(3)
        ]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return str(self)


def _require_count(name: str, k: Any) -> None:
    if not isinstance(k, int) or k < 1:
        raise ValueError(f"{name}({k!r}): write a whole number of at least 1")
