"""The file of a model that `train` made: its tensors, and all that `predict` needs to know of it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from fluxlike.command.config import Configuration, Csv, configured
from fluxlike.command.models import Spread, built, spread_of_images
from fluxlike.files.opening import SAFETENSORS, START, kind_of, open_regular
from fluxlike.files.reader import TensorFile
from fluxlike.files.strict_json import read_json
from fluxlike.files.tensors import described, load, save

__all__ = ["About", "read_about", "read_model", "save_model"]

_FORMAT = "a model of python -m fluxlike train"
_VERSION = 1
_ABOUT = "['about']"
_OF_THE_MACHINE = ("path", "validation", "workers", "weights")


@dataclass(frozen=True)
class About:
    """What is known of a trained model.

    Attributes:
        run: its configuration, without what is of the machine that it was trained on.
        classes: the names of the classes; None for values.
        columns: the names of the columns that it gets; none for images.
        scores: how the last epoch went: numbers by ``"validation accuracy"`` and the like.
    """

    run: Configuration
    classes: tuple[str, ...] | None
    columns: tuple[str, ...]
    scores: Mapping[str, float]


def save_model(path: Path, model: Any, about: About, /) -> None:
    """Write a model to one file, which appears whole."""
    save(path, {"about": _text(about), "model": model})


def read_about(path: str | os.PathLike[str], /) -> About:
    """What is known of a trained model, from the header of its file.

    Raises:
        ValueError: the file is damaged, or `train` did not write it.
        FileNotFoundError: there is no such file.
    """
    return _parsed(path, _read_text(path))


def read_model(path: str | os.PathLike[str], /) -> tuple[About, Any]:
    """A trained model in main memory, and what is known of it.

    Raises:
        ValueError: the file is damaged, or `train` did not write it.
        FileNotFoundError: there is no such file.
        ImportError: it is a model of torchvision, which is not installed.
    """
    text = _read_text(path)
    about = _parsed(path, text)
    # Nothing is allocated that the file does not hold.
    with torch.device("meta"):
        try:
            like = _like(about)
        except (ValueError, RuntimeError, OverflowError) as error:
            raise ValueError(f"{path} describes a model that can't be built: {error}") from error
    return about, load(path, like={"about": text, "model": like})["model"]


def _like(about: About) -> Any:
    n = len(about.columns)
    values = about.classes is None
    inputs = Spread(torch.empty(n), torch.empty(n)) if n else spread_of_images(about.run.data.channels)  # type: ignore[union-attr]
    targets = Spread(torch.empty(1), torch.empty(1)) if values else None
    return built(about.run, inputs, 1 if about.classes is None else len(about.classes), targets)


def _text(about: About) -> str:
    run = about.run
    tables = {"data": asdict(run.data), "model": asdict(run.model)}
    for table in tables.values():
        for name in _OF_THE_MACHINE:
            table.pop(name, None)
    return json.dumps(
        {
            "format": _FORMAT,
            "version": _VERSION,
            **tables,
            "training": asdict(run.training),
            "classes": about.classes,
            "columns": about.columns,
            "scores": {name: float(value).hex() for name, value in about.scores.items()},  # JSON knows no NaN
        }
    )


def _read_text(path: str | os.PathLike[str]) -> str:
    with open_regular(path) as file:
        kind = kind_of(file.read(START))
    if kind != SAFETENSORS:
        raise ValueError(_no_model(path, kind or "of another kind"))
    with TensorFile(path) as file:
        leaves = described(path, file).leaves if "fluxlike" in file.metadata else {}
    text = leaves.get(_ABOUT, {}).get("value")
    if not isinstance(text, str) or _FORMAT not in text:
        raise ValueError(_no_model(path, SAFETENSORS))
    return text


def _no_model(path: str | os.PathLike[str], kind: str) -> str:
    return (
        f"{path} is {kind}, and not one that python -m fluxlike train wrote; give the model.safetensors in "
        "the output folder of a run"
    )


def _parsed(path: str | os.PathLike[str], text: str) -> About:
    try:
        found = read_json(text)
        if found["version"] != _VERSION:
            raise ValueError(f"it is of version {found['version']!r}; this fluxlike reads {_VERSION}")
        tables = {name: _lists(found[name]) for name in ("data", "model", "training")}
        run = configured({**tables, "data": {**tables["data"], "path": "."}}, Path())
        classes = None if found["classes"] is None else _names(found["classes"])
        columns = _names(found["columns"])
        scores = {name: float.fromhex(value) for name, value in found["scores"].items()}
        if isinstance(run.data, Csv) != bool(columns) or (classes is not None and len(classes) < 2):
            raise ValueError("its columns and classes are not of its data")
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path} says of its model what can't be read: {error}") from error
    return About(run, classes, columns, scores)


def _lists(table: Any) -> dict[str, Any]:
    """A section without the keys that have no value."""
    return {name: value for name, value in table.items() if value is not None}


def _names(found: Any) -> tuple[str, ...]:
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise ValueError("its names are no list of texts")
    return tuple(found)
