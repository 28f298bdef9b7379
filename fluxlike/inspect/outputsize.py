"""`outputsize`: the shapes of a model's output, from those of its input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fluxlike.inspect.dry_run import DryRun
from fluxlike.trees.fmap import fmap

__all__ = ["outputsize"]


def outputsize(
    model: Callable[..., Any], /, *inputs: Any, dtype: torch.dtype | None = None, **named: Any
) -> Any:
    """The shapes of a model's output, worked out without memory or numbers.

    The model runs on the meta device, in the mode of the scope: test mode, unless ``with mode("train")``
    or a gradient surrounds the call. No buffer moves and nothing is drawn.

    Args:
        model: a model that can be called; it may be on any device, the meta device too.
        inputs: what it is called with: tensors, shapes such as ``(32, 3, 28, 28)`` in their place, or
            trees of these. Anything else is passed on. Every tuple or list of integers is a shape; a named
            tuple of them is passed on, or write it in a function, ``lambda x: model(x, (2, 2))``.
        dtype: of the inputs given by their shape, such as ``torch.int64`` for indices; for inputs of several
            dtypes, write ``torch.empty(8, 5, dtype=torch.bool, device="meta")``. It is never passed to the
            model. (default: the floating dtype that most of the model's numbers have, else torch's default)
        named: inputs by name, in the same way.

    Returns:
        The output with a ``torch.Size`` in place of each tensor.

    Raises:
        LayerError: a layer failed, with its path, what it got and what it wants; or a layer asks for the
            value of a tensor.
        TypeError: the model can't be called.
        ValueError: `dtype` without a shape.

    Example:
        >>> import torch, fluxlike as fl
        >>> model = fl.Chain(fl.Conv((5, 5), 3, 7, stride=2), fl.flatten)
        >>> fl.outputsize(model, (32, 3, 100, 100))
        torch.Size([32, 16128])
        >>> fl.outputsize(fl.Embedding(10, 3), (8, 5), dtype=torch.int64)
        torch.Size([8, 5, 3])
    """
    y = DryRun("outputsize").run(model, inputs, dtype, named)
    return fmap(lambda t: t.shape, y)
