"""In what a published checkpoint differs from a model of the zoo, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from fluxlike.files.report import CheckpointMatch, Differing
from fluxlike.layers.steps import Steps
from fluxlike.trees.paths import dotted

__all__ = ["advice", "difference", "named_alike"]

_LISTED = 4  # places that differ in their number of layers


def named_alike(found: CheckpointMatch, names: Mapping[str, str], /) -> bool:
    """Whether a checkpoint has the names of a model, be it of this configuration or of another.

    Args:
        found: what came of matching the two.
        names: the place in dots that each name of the checkpoint became.

    Returns:
        Whether more than half of the names, or of the model's places, are shared.
    """
    shared = len(names) - len(found.unexpected)
    return 2 * shared > min(len(names), shared + len(found.missing))


def difference(found: CheckpointMatch, names: Mapping[str, str], model: Any, /) -> str:
    """A sentence on tensors, shapes and dtypes, and where the names are alike on layers.

    Args:
        found: what came of matching a checkpoint and a model.
        names: the place in dots that each name of the checkpoint became.
        model: the model.

    Example:
        >>> import torch, fluxlike as fl
        >>> model = fl.Chain(*[fl.Dense(2, 2, bias=False) for _ in range(3)])
        >>> theirs = {"layers.0.weight": torch.ones(4, 2)}
        >>> print(difference(fl.match_checkpoint(theirs, model), {name: name for name in theirs}, model))
        the checkpoint has 1 layer in model (the model 3); 2 tensors of the model are not in it; 1 tensor ...
    """
    differing = (*found.reshaped, *found.retyped)
    ours = (*found.loaded, *found.kept, *found.missing, *(d.path for d in differing))
    alike = named_alike(found, names)
    said = _depths(_numbers(names.values()), _numbers(map(dotted, ours)), model) if alike else []
    if found.missing:
        said.append(f"{_count(found.missing, 'tensor')} of the model {_are(found.missing)} not in it")
    if found.unexpected:
        has = "has" if len(found.unexpected) == 1 else "have"
        said.append(f"{_count(found.unexpected, 'tensor')} of the checkpoint {has} no place")
    for what, of_kind in (("shape", found.reshaped), ("dtype", found.retyped)):
        if of_kind:
            said.append(f"{_count(of_kind, 'tensor')} {_are(of_kind)} of another {what}{_mostly(of_kind)}")
    return "; ".join(said)


def advice(found: CheckpointMatch, read: str, /) -> str:
    """What to write.

    Args:
        found: what came of matching a checkpoint and a model.
        read: how to read the checkpoint, as code.
    """
    differing = (*found.reshaped, *found.retyped)
    places = [*found.missing, *(d.path for d in differing)]
    elsewhere = [path for path in places if not _in_classifier(path)]
    keep = "classifier=False leaves the model its own classifier"
    if places and not found.unexpected and not elsewhere:
        return keep
    if len(found.retyped) == len(places) and not found.unexpected:
        return "cast=True converts to the model's dtype"
    stem = next((d for d in differing if [d.path] == elsewhere and _takes_other_channels(d)), None)
    if stem is None or found.unexpected:
        return "make the model in the configuration of the checkpoint"
    return "\n".join([_of_other_channels(stem, read), *([keep] if len(places) > 1 else [])])


def _in_classifier(path: str) -> bool:
    return path.startswith(".classifier")


def _takes_other_channels(differing: Differing) -> bool:
    """Whether a kernel differs in its inputs alone.

    Where every other tensor fits, these are no outputs of a layer, so they are channels of the images.
    """
    a, b = differing.found, differing.wanted
    shapes = isinstance(b, tuple) and len(a) == len(b) > 2
    return shapes and a[1] != b[1] and (a[0], *a[2:]) == (b[0], *b[2:])


def _of_other_channels(stem: Differing, read: str) -> str:
    theirs, ours = stem.found[1], stem.wanted[1]
    summed = "kernel.sum(1, keepdim=True)"
    if ours > 1:
        summed += f".expand(-1, {ours}, {', '.join(['-1'] * (len(stem.wanted) - 2))}) / {ours}"
    return (
        f"{stem.path} takes images of {_channels(theirs)} in the checkpoint, of {_channels(ours)} in the "
        f"model; make the model with inchannels={theirs}, or sum the kernel, which gives images of equal "
        "channels the same scores:\n"
        f"  tensors = dict({read})\n"
        f"  kernel = tensors[{stem.name!r}]\n"
        f"  tensors[{stem.name!r}] = {summed}\n"
        "  load_weights(tensors, model)"
    )


def _numbers(places: Iterable[str]) -> dict[str, set[str]]:
    """What is numbered, by the places in dots that have a number behind them."""
    found: dict[str, set[str]] = {}
    for place in places:
        parts = place.split(".")
        for i, part in enumerate(parts):
            if part.isdecimal():
                found.setdefault(".".join(parts[:i]), set()).add(part)
    return found


def _depths(theirs: dict[str, set[str]], ours: dict[str, set[str]], model: Any) -> list[str]:
    """Where the two have another number of layers, as at most one clause."""
    others = [place for place in ours if place in theirs and len(theirs[place]) != len(ours[place])]
    outer = [place for place in others if not any(place.startswith(f"{other}.") for other in others)]
    if not outer:
        return []
    listed = [
        f"{_count(theirs[place], 'layer') if i == 0 else len(theirs[place])} in {_as_code(place, model)} "
        f"({'the model ' if i == 0 else ''}{len(ours[place])})"
        for i, place in enumerate(outer[:_LISTED])
    ]
    more = f" and others in {_count(outer[_LISTED:], 'place')} more" if len(outer) > _LISTED else ""
    return [f"the checkpoint has {', '.join(listed)}{more}"]


def _as_code(place: str, model: Any) -> str:
    """A place in dots as one writes it, with the layers of Chains by name."""
    node, text, parts = model, "model", place.split(".")
    while parts:
        part = parts.pop(0)
        if isinstance(node, Steps) and part == "layers":
            if parts:
                i = int(parts.pop(0))
                text += f"[{node.names[i]!r}]" if node.names else f"[{i}]"
                node = node.layers[i]
        elif part.isdecimal():
            text, node = f"{text}[{part}]", node[int(part)]
        elif part:
            text, node = f"{text}.{part}", getattr(node, part)
    return text


def _mostly(differing: tuple[Differing, ...]) -> str:
    """The numbers, or dtypes, that most of them have in place of the model's; nothing where they vary."""
    pairs: Counter[tuple[Any, Any]] = Counter()
    for d in differing:
        if not isinstance(d.wanted, tuple):
            pairs[d.found, d.wanted] += 1
        elif len(d.found) == len(d.wanted):
            pairs.update({(a, b) for a, b in zip(d.found, d.wanted, strict=True) if a != b})
    (a, b), often = max(pairs.items(), key=lambda pair: pair[1], default=((None, None), 0))
    if 2 * often <= len(differing):
        return ""
    return f", {'' if often == len(differing) else 'most with '}{a} where the model has {b}"


def _count(things: Any, name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"


def _are(things: Any) -> str:
    return "is" if len(things) == 1 else "are"


def _channels(n: int) -> str:
    return "1 channel" if n == 1 else f"{n} channels"
