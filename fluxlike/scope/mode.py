"""Train or test mode, which follows the transform instead of living in the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, TypeVar

from fluxlike.trees.functor import PIN, spec_of
from fluxlike.trees.paths import children, is_node
from fluxlike.trees.structure import flatten

__all__ = [
    "Mode",
    "ambient",
    "automode",
    "mode",
    "restore",
    "state",
    "testmode",
    "training",
    "trainmode",
]

T = TypeVar("T")

Mode = Literal["train", "test"]

# What transforms say, and what `with mode(...)` says, which beats it. A ContextVar belongs to its
# thread (and its asyncio task).
_ambient: ContextVar[Mode] = ContextVar("fluxlike_ambient_mode", default="test")
_stated: ContextVar[Mode | None] = ContextVar("fluxlike_stated_mode", default=None)


def training(layer: Any = None, /) -> bool:
    """Whether a layer runs in train mode: what its forward asks.

    A pinned layer (`trainmode`, `testmode`) follows its pin, else ``with mode(...)`` decides, else
    the transform around the call: `gradient` of a model trains, everything else tests.

    Args:
        layer: the layer that asks, usually ``self``. (default: None, a function without a pin)

    Example:
        >>> import fluxlike as fl
        >>> fl.training()
        False
        >>> with fl.mode("train"):
        ...     fl.training()
        True
    """
    pin = getattr(layer, PIN, None)
    return (pin or _stated.get() or _ambient.get()) == "train"


@contextmanager
def mode(value: Mode, /) -> Iterator[None]:
    """Set the mode of everything called inside, whatever the transforms around or inside say.

    Args:
        value: ``"train"`` or ``"test"``.

    Raises:
        ValueError: another value.

    Example:
        >>> import torch, fluxlike as fl
        >>> drop = fl.Dropout(0.5)
        >>> with fl.mode("train"):
        ...     bool((drop(torch.ones(100)) == 0).any())
        True
        >>> bool((drop(torch.ones(100)) == 0).any())
        False
    """
    if value not in ("train", "test"):
        raise ValueError(f"mode({value!r}): write 'train' or 'test'")
    token = _stated.set(value)
    try:
        yield
    finally:
        _stated.reset(token)


def trainmode(tree: T, /) -> T:
    """A model whose layers always run in train mode, until `automode`.

    Args:
        tree: a model, or any tree of layers.

    Returns:
        A new tree that shares every tensor with the old one. `update` keeps the pin.

    Raises:
        TypeError: a class without ``__dict__`` that has no slot ``_pinned_mode``.

    Example:
        >>> import torch, fluxlike as fl
        >>> x = fl.trainmode(fl.Dropout(0.9))(torch.ones(100))
        >>> bool((x == 0).any())
        True
    """
    return _pin(tree, "train")


def testmode(tree: T, /) -> T:
    """A model whose layers always run in test mode, until `automode`.

    BatchNorm uses its running statistics and does not move them, Dropout does nothing, also inside
    `gradient`: what fine-tuning does with a backbone.

    Args:
        tree: a model, or any tree of layers.

    Returns:
        A new tree that shares every tensor with the old one. `update` keeps the pin.

    Raises:
        TypeError: as `trainmode`.

    Example:
        >>> import fluxlike as fl
        >>> model = fl.Chain(fl.testmode(fl.BatchNorm(3)), fl.Dense(3, 1))
        >>> model.layers[0]
        BatchNorm(3)  # 6 parameters, 6 non-trainable, test mode
    """
    return _pin(tree, "test")


testmode.__test__ = False  # type: ignore[attr-defined]  # pytest takes the name for a test


def automode(tree: T, /) -> T:
    """Undo `trainmode` and `testmode`: the layers follow the scope again.

    Args:
        tree: a model, or any tree of layers.

    Returns:
        A new tree that shares every tensor with the old one.

    Example:
        >>> import fluxlike as fl
        >>> fl.automode(fl.testmode(fl.Dropout(0.5)))
        Dropout(0.5)
    """
    return _pin(tree, None)


def _pin(tree: Any, value: Mode | None) -> Any:
    leaves, treedef = flatten(tree)
    fresh = treedef.unflatten(leaves)  # new nodes, the same leaves: these may be written to
    _set_pins(fresh, value, "")
    return fresh


def _set_pins(node: Any, value: Mode | None, path: str) -> None:
    if not is_node(node):
        return
    if spec_of(type(node)) is not None:
        try:
            if value is not None:
                object.__setattr__(node, PIN, value)
            elif hasattr(node, PIN):
                object.__delattr__(node, PIN)
        except AttributeError:
            raise TypeError(
                f"{path or 'the tree itself'} is a {type(node).__qualname__}, whose __slots__ leave no "
                f"room for a mode; add {PIN!r} to its __slots__"
            ) from None
    for step, child in children(node):
        _set_pins(child, value, path + step.text)


def ambient(value: Mode, /) -> Any:
    """Set the mode that transforms give; returns the token for `restore`."""
    return _ambient.set(value)


def restore(token: Any, /) -> None:
    """Undo `ambient`."""
    _ambient.reset(token)


def state() -> tuple[Mode, Mode | None]:
    """What decides the mode of a layer that is not pinned: a trace holds for one of these."""
    return _ambient.get(), _stated.get()
