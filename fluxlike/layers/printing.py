"""Arguments in print: each as one more in a row, nothing where it is the default."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fluxlike.layers.activations import identity
from fluxlike.trees.paths import is_node
from fluxlike.trees.show import value_text

__all__ = ["activation_text", "settings_text", "sizes_text"]


def activation_text(activation: Callable[..., Any], default: Callable[..., Any] = identity) -> str:
    """The activation; nothing for the default, nor for a layer, which has a line of its own."""
    return "" if activation is default or is_node(activation) else f", {value_text(activation)}"


def settings_text(**settings: tuple[object, object]) -> str:
    """Settings of one value, each given as its value and its default."""
    return "".join(f", {name}={value!r}" for name, (value, default) in settings.items() if value != default)


def sizes_text(name: str, sizes: Sequence[int], default: Sequence[int]) -> str:
    """A setting of one number an axis, as one number where they are alike."""
    if tuple(sizes) == tuple(default):
        return ""
    return f", {name}={sizes[0] if len(set(sizes)) == 1 else tuple(sizes)}"
