"""A layer called by a layer: its error names the step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fluxlike.layers.errors import LayerError

__all__ = ["within"]


def within(step: str, layer: Callable[..., Any], x: Any, *others: Any, **named: Any) -> Any:
    """``layer(x, …)``, where an error says that the layer is found at `step`, and what it got.

    Raises:
        LayerError: the layer failed over what it got.
    """
    try:
        return layer(x, *others, **named)
    except Exception as error:
        if not LayerError.wraps(error):
            raise
        raise LayerError.at(step, layer, x, error) from error
