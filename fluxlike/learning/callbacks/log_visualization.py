"""`LogVisualization`: pictures of a run, in its logs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fluxlike.learning.callback import DECLARED
from fluxlike.learning.callbacks.every import checked_every
from fluxlike.learning.callbacks.logging import Logging
from fluxlike.learning.logs.protocol import Log
from fluxlike.learning.randomness import kept
from fluxlike.learning.ranks import whole

__all__ = ["LogVisualization"]


class LogVisualization(Logging):
    """Writes figures or pictures, made from the run by a function, to logs.

    The function runs in test mode and without gradients, and what it draws at random does not change the run.

    Args:
        logs: a `TensorBoardLog`, or several.
        f: from the run to a figure of matplotlib, to a picture, which is a tensor of bytes or of floats from
            0 to 1, (C, H, W), (H, W) or (N, C, H, W), or to a dict of these by name.
        every: after how many steps of training to write. (default: at the end of every epoch)
        name: what it is called in the log. (default: the name of the function)

    Raises:
        TypeError: no log, or one that keeps no pictures; in the fit, a function that gives something else.
        ValueError: `every` is no number of steps; a lambda without a name.

    Example:
        >>> import os, tempfile, torch, fluxlike as fl
        >>> from fluxlike.learning.callbacks.log_visualization import LogVisualization
        >>> from fluxlike.learning.logs import TensorBoardLog
        >>> images, classes = torch.rand(8, 1, 4, 4), torch.arange(8) % 2
        >>> def predictions(run):
        ...     return fl.show_predictions(run.model, (images, classes))
        >>> model = fl.Chain(fl.flatten, fl.Dense(16, 2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     logging = LogVisualization(TensorBoardLog(folder), f=predictions)
        ...     learner = fl.Learner(
        ...         model, [(images, classes)], fl.Adam(), fl.losses.logitcrossentropy, callbacks=[logging],
        ...         progress=False,
        ...     )
        ...     _ = fl.fit(learner)
        ...     len(os.listdir(folder))
        1
    """

    kinds = ("figures", "images")
    reads = DECLARED

    def __init__(
        self, *logs: Log, f: Callable[[Any], Any], every: int | None = None, name: str | None = None
    ) -> None:
        super().__init__(*logs)
        if not callable(f):
            raise TypeError(
                f"LogVisualization got f={f!r}; write a function from the run to a figure, such as "
                "lambda run: fl.show_predictions(run.model, batch)"
            )
        self.f = f
        self.every = None if every is None else checked_every(self.name, every)
        self.called = _named(f) if name is None else name

    def step_end(self, run: Any) -> None:
        if self.every and run.trains and run.step % self.every == 0:
            self._write(run)

    def epoch_end(self, run: Any) -> None:
        if not self.every and run.phase == run.learner.phases[-1].name:
            self._write(run)

    def _write(self, run: Any) -> None:
        with kept(), torch.no_grad():
            made = self.f(run)
        if isinstance(made, Mapping):
            named = {f"{self.called}/{name}": picture for name, picture in made.items()}
        else:
            named = {self.called: made}
        named = {name: whole(picture) for name, picture in named.items()}
        for name, picture in named.items():
            if not isinstance(picture, Tensor) and not hasattr(picture, "savefig"):
                raise TypeError(
                    f"the function {self.called!r} gave {_article(picture)}; return a figure of matplotlib, "
                    "a tensor, or a dict of these by name"
                )
            for log in self.logs if run.ranks.first else ():
                write = log.image if isinstance(picture, Tensor) else log.figure
                write(name, picture, run.step)


def _named(f: Callable[[Any], Any]) -> str:
    name = getattr(f, "__name__", type(f).__name__)
    if name == "<lambda>":
        raise ValueError(
            "a lambda has no name; write LogVisualization(log, f=lambda run: …, name='predictions')"
        )
    return str(name)


def _article(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
