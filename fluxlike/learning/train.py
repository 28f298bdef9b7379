"""`train`: a loop over data for a loss of the model and a batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from fluxlike.advice import call_hint
from fluxlike.learning.callback import Callback
from fluxlike.learning.callbacks.nonfinite import StopOnNonFiniteLoss
from fluxlike.learning.fit import fit
from fluxlike.learning.learner import Learner
from fluxlike.learning.step import Out, Step, as_out, signature_of, takes, what
from fluxlike.scope.key import Key
from fluxlike.trees.trainables import trainables

__all__ = ["train"]


def train(
    loss: Callable[..., Any],
    model: Any,
    data: Any,
    state: Any,
    epochs: int = 1,
    callbacks: Sequence[Callback] = (),
    *,
    key: Key | None = None,
) -> tuple[Any, Any]:
    """Train a model: for each batch of each epoch, the gradient of ``loss(model, *batch)`` and an update.

    It shows nothing; a `Learner` has metrics, history and progress.

    Args:
        loss: the loss of a model and a batch, as for `withgradient`: a 0-d tensor, or a tuple or dict with
            it.
        model: the model.
        data: batches, which can be iterated once an epoch; a tuple or list is spread over the arguments
            of the loss, a dict over its named ones.
        state: the state of the optimiser, from `setup`.
        epochs: how often to go through the data. (default: 1)
        callbacks: callbacks, such as a progress bar. (default: none)
        key: what draws are a function of. (default: torch's generator, seeded at each step)

    Returns:
        The new model and the new state.

    Raises:
        TypeError: a loss that does not take the model and a batch, or calls a model that can't be called.
        NonFiniteLoss: a loss that is NaN or infinite; it names the layer.

    Example:
        >>> import torch, fluxlike as fl
        >>> x = torch.linspace(-1, 1, 64).unsqueeze(1)
        >>> data = fl.DataLoader((x, 3 * x), batch_size=16)
        >>> model = fl.Dense(1, 1)
        >>> state = fl.setup(fl.Adam(0.1), model)
        >>> model, state = fl.train(lambda m, x, y: fl.losses.mse(m(x), y), model, data, state, epochs=40)
        >>> abs(model.weight.item() - 3) < 0.2
        True
    """
    if not callable(loss) or not trainables(model):
        raise TypeError(
            f"train takes a loss and a model with parameters, found {type(loss).__name__} and "
            f"{type(model).__name__}: write train(loss, model, data, state), with a loss of model and batch"
        )
    stop = () if any(isinstance(c, StopOnNonFiniteLoss) for c in callbacks) else (StopOnNonFiniteLoss(),)
    learner = Learner(
        model, {"training": data}, None, step=_LossStep(loss), state=state, callbacks=(*stop, *callbacks),
        defaults=False, key=key,
    )  # fmt: skip
    learner = fit(learner, epochs)
    return learner.model, learner.state


class _LossStep(Step):
    """A step of a loss of model and batch."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def loss(self, model: Any, batch: Any, /) -> Out:
        given: Sequence[Any] = ()
        named: Mapping[str, Any] = {}
        if isinstance(batch, Mapping):
            named = batch
        else:
            given = batch if isinstance(batch, (tuple, list)) else (batch,)
        try:
            found = self.function(model, *given, **named)
        except TypeError as error:
            self._explain(error, model, batch, given, named)
            raise
        if isinstance(found, (Mapping, Tensor)):
            return as_out(found)
        if dataclasses.is_dataclass(found) or hasattr(found, "_fields"):
            return {"loss": found.loss}
        return {"loss": found[0] if isinstance(found, tuple) else found}

    def _explain(
        self, error: TypeError, model: Any, batch: Any, given: Sequence[Any], named: Mapping[str, Any]
    ) -> None:
        """Raise a better error where the loss does not take a model and a batch, or the model no call."""
        if not takes(self.function, model, *given, **named):
            raise TypeError(
                f"train calls the loss with the model and the batch, {what(batch)}, and the loss "
                f"{signature_of(self.function)} does not take them: for a loss of outputs and targets write "
                "lambda model, x, y: loss(model(x), y), or give it to a Learner"
            ) from None
        kind = type(model).__name__
        if str(error) == f"'{kind}' object is not callable" and call_hint(model):
            raise TypeError(
                f"the loss calls the model, and a {kind} can't be called{call_hint(model)}"
            ) from error
