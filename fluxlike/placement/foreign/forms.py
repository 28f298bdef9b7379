"""What is known of a tensor: which features its axes count, as layers say, and what it was made of."""

from __future__ import annotations

from dataclasses import dataclass

from fluxlike.placement.foreign.features import BATCH, CHANNEL, PLAIN, SPATIAL, UNSURE, Axis, factors_of

__all__ = ["Axes", "Form", "Trace", "Use", "say_features", "say_image"]

Axes = tuple[Axis, ...]


@dataclass(frozen=True)
class Trace:
    """What a tensor was made of in a way that no rule explains.

    Attributes:
        by: the operation.
        axes: those of what it was made of.
        keeps_axes: whether the result may have axes of its own, in the layout of a sequence.
        known: whether a layer for images says since which axes are which.
    """

    by: str
    axes: Axes
    keeps_axes: bool = True
    known: bool = False


@dataclass
class Form:
    """What the axes of a tensor count.

    Attributes:
        axes: one for each axis.
        data: whether it depends on the inputs.
        parameters: the paths of the parameters that it is made of, if it does not.
        traces: what it was made of in other ways.
    """

    axes: Axes
    data: bool = False
    parameters: tuple[str, ...] = ()
    traces: tuple[Trace, ...] = ()


@dataclass(frozen=True)
class Use:
    """A parameter that meets a tensor with traces, or with other axes than before."""

    parameters: tuple[str, ...]
    traces: tuple[Trace, ...] = ()
    clash: Axes = ()
    made_of: Axes = ()  # the axes of a tensor that was made of the parameters in an unknown way


def say_image(form: Form, channels: int) -> None:
    """Say that an axis counts the channels of images, and those after it their places."""
    for i, axis in enumerate(form.axes):
        kind = CHANNEL if i == channels else SPATIAL if i > channels else BATCH
        found = factors_of([axis])
        said = {f.role.said for f in found}
        if kind == BATCH or not {CHANNEL, SPATIAL} <= said:
            for f in found:
                if kind != BATCH or f.role.said is None:
                    f.role.say(kind)


def say_features(form: Form, summed: Axis) -> None:
    """Say that a tensor of unsure axes is one of features, as a sum over one of them shows."""
    found = factors_of([summed])
    if len(found) > 1:
        return
    for f in factors_of(form.axes):
        role = f.role.root()
        if f.role.kind == UNSURE:
            role.assumed = PLAIN
            role.summed = f in found
