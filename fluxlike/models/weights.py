"""Weights that other libraries published, into models of the zoo."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fluxlike.files.checkpoints import read_checkpoint
from fluxlike.files.locating import source_of
from fluxlike.files.match import Match
from fluxlike.files.report import mismatches
from fluxlike.models.misfit import advice, difference, named_alike
from fluxlike.models.origins import Origin, Tensors

__all__ = ["load_weights"]


def load_weights(
    source: str | os.PathLike[str] | Tensors,
    model: Any,
    /,
    *,
    part: str | None = None,
    cast: bool = False,
    classifier: bool = True,
) -> Any:
    """A model of the zoo with the weights of a checkpoint of torchvision, timm or transformers.

    The model says which libraries it has a counterpart in (its `origins`), and how names and arrays there
    become its own. Which one wrote the checkpoint is seen from its names.

    Names and shapes are all that is looked at. What a network does without weights they can't tell: the eps
    of its norms, padding, how it shrinks maps. So timm's ``tf_efficientnet_b0``, whose convolutions pad as
    TensorFlow's do, loads into ``EfficientNet("b0")``, and its ``resnetblur50``, which blurs before it
    shrinks, into ``ResNet(50)``, and the scores differ. Take weights of the variant that the model's
    docstring names, and compare scores with the library's once.

    Args:
        source: a file or folder as `read_checkpoint` takes it, or a dict of tensors such as a `state_dict`.
        model: of the same configuration; unchanged.
        part: the entry of the file that holds the weights, as in `read_checkpoint`. (default: the whole file)
        cast: whether floating tensors may be of another dtype than the model's. (default: False)
        classifier: whether to read the classifier too; without it, the model keeps its own, for other
            classes. (default: True)

    Returns:
        A new model.

    Raises:
        ValueError: the checkpoint is of no library that the model knows, or of another configuration; the
            places are named. Or it can't be read.
        TypeError: no model of the zoo.
        FileNotFoundError: there is no such file.

    Example:
        >>> import torch, fluxlike as fl
        >>> model = fl.models.ResNet(18)
        >>> fl.models.load_weights({"features.0.weight": torch.ones(64, 3, 11, 11)}, model)  # an AlexNet's
        Traceback (most recent call last):
        ValueError: these are not weights of this Classifier as torchvision or timm has them; nearest are ...
    """
    origins = getattr(model, "origins", None)
    if not origins:
        raise TypeError(_without_origins(type(model).__name__))
    found = source if isinstance(source, Mapping) else read_checkpoint(source, part=part)
    attempts = []
    for same in _by_rules(origins):
        attempt = _Attempt(found, model, same, cast=cast, classifier=classifier)
        if attempt.match is not None and not attempt.faults:
            return attempt.match.filled()
        attempts.append(attempt)
    best = min(attempts, key=lambda attempt: attempt.faults)
    read = "source" if isinstance(source, Mapping) else _reading(part)
    for prefix in _shared_prefixes(found):
        stripped = {name.removeprefix(prefix): x for name, x in found.items()}
        again = (_Attempt(stripped, model, a.origins, cast=cast, classifier=classifier) for a in attempts)
        if any(not attempt.faults for attempt in again):
            raise ValueError(
                f"each name in the checkpoint begins with {prefix!r}, which a wrapper put there, and without "
                f"it these are weights of this {type(model).__name__}; write\n  tensors = {read}\n  "
                f"load_weights({{name.removeprefix({prefix!r}): x for name, x in tensors.items()}}, model)"
            )
    raise ValueError(best.explained(model, origins, read))


def _reading(part: str | None) -> str:
    """How a file is read, as code."""
    return f"fluxlike.read_checkpoint(source{'' if part is None else f', part={part!r}'})"


def _by_rules(origins: Sequence[Origin]) -> list[list[Origin]]:
    """The origins, those together that read a checkpoint alike."""
    found: list[list[Origin]] = []
    for origin in origins:
        for alike in found:
            if (alike[0].rules, alike[0].prepare) == (origin.rules, origin.prepare):
                alike.append(origin)
                break
        else:
            found.append([origin])
    return found


#: What makes the networks over a backbone, by what they are.
_OVER_A_BACKBONE = {"Segmenter": "UNet({}, nclasses=…)", "Detector": "YOLO({}, nclasses=…)"}


def _without_origins(kind: str) -> str:
    if kind in _OVER_A_BACKBONE:
        line = _OVER_A_BACKBONE[kind].format("load_weights(source, ResNet(50))")
        return (
            f"load_weights takes a model that has a counterpart in another library, and a {kind} has none, "
            f"only its backbone; load that first, such as {line}"
        )
    return (
        "load_weights takes a model of fluxlike.models that has a counterpart in another library, found "
        f"{kind}; for another model write fluxlike.load_checkpoint(source, model, rename=…)"
    )


def _shared_prefixes(found: Tensors) -> Iterator[str]:
    """The first parts of the names, as many as all of them share: ``module.``, ``module.model.``, …"""
    first = next(iter(found), "")
    for dot in (i for i, letter in enumerate(first) if letter == "."):
        prefix = first[: dot + 1]
        if not all(name.startswith(prefix) for name in found):
            return
        yield prefix


class _Attempt:
    """A checkpoint, read as one of one library, or of several that name and lay out alike.

    Attributes:
        origins: the libraries.
        match: what stands for what; None where the names can't be of these libraries.
        faults: how many tensors do not fit.
    """

    def __init__(
        self, found: Tensors, model: Any, origins: Sequence[Origin], *, cast: bool, classifier: bool
    ) -> None:
        self.origins, self.reason, origin = origins, "", origins[0]

        def rename(name: str) -> str | None:
            new = origin.renamed(name, model)
            return new if classifier or new is None or new.split(".")[0] != "classifier" else None

        self.match, self.faults = None, len(found) + 1
        try:
            tensors = origin.prepare(found) if origin.prepare is not None else found
            self.match = Match(source_of(dict(tensors), None), model, rename, cast=cast)
        except KeyError as error:
            self.reason = (
                f"read as one of {origin.library}, the checkpoint lacks {error.args[0]!r}, which is joined "
                "with others that are there"
            )
            return
        except ValueError as error:
            self.reason = f"{type(error).__name__}: {error}"
            return
        report = self.match.report
        missing = [p for p in report.missing if classifier or not p.startswith(".classifier")]
        unexpected = [name for name in report.unexpected if not _counts_beside(name, self.match.names)]
        self._report = replace(report, missing=tuple(missing), unexpected=tuple(unexpected))
        self.faults = sum(map(len, (missing, unexpected, report.reshaped, report.retyped)))

    def explained(self, model: Any, known: Sequence[Origin], read: str) -> str:
        """What does not fit.

        Args:
            model: what the weights are for.
            known: all libraries that the model knows.
            read: how to read the checkpoint, as code.
        """
        kind = f"these are not weights of this {type(model).__name__} as"
        if self.match is None:
            return f"{kind} {_libraries(known)} has them: {self.reason}"
        report, names = self._report, self.match.names
        head = f"{kind} {_libraries(self.origins)} has them"
        if not named_alike(report, names):
            nearest = _libraries(self.origins, ending="'s")
            head = f"{kind} {_libraries(known)} has them; nearest are {nearest} names"
        lines = [f"{head}: {difference(report, names, model)}", *mismatches(report, names)]
        return "\n  ".join(lines) + f"\n{advice(report, read)}"


def _libraries(origins: Sequence[Origin], ending: str = "") -> str:
    return " or ".join(origin.library + ending for origin in origins)


def _counts_beside(name: str, names: Mapping[str, str]) -> bool:
    """Whether a name is that of a norm's count of batches, which is judged by the statistics beside it."""
    head, _, last = name.rpartition("num_batches_tracked")
    return not last and f"{head}running_mean" in names
