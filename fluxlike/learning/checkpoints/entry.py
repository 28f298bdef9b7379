"""One checkpoint in its folder: the name of its file, and what is said of it there."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fluxlike.files.printing import shown
from fluxlike.files.reader import TensorFile
from fluxlike.files.strict_json import read_json
from fluxlike.files.tensors import described

__all__ = ["NAME", "About", "Entry", "named", "read_about", "read_entry", "step_of", "written_about"]

#: What files of checkpoints are called.
NAME = re.compile(r"step-(?P<step>\d{9,18})\.safetensors", re.ASCII)

_ABOUT = "['about']"
_PLAIN = "['plain']"


@dataclass(frozen=True)
class Entry:
    """A checkpoint that is there.

    Attributes:
        step: the step that it was saved after.
        path: its file.
        scores: what it was measured by.
        fault: what is wrong with its header; None where nothing is. Only `Store.load` looks at the rest.
    """

    step: int
    path: Path
    scores: Mapping[str, float] = field(default_factory=dict)
    fault: str | None = None


@dataclass(frozen=True)
class About:
    """What a checkpoint says of itself beside its tensors.

    Attributes:
        step: the step that it was saved after.
        scores: what it was measured by.
        strides: of tensors that do not lie in memory as new ones do, by path.
        plain_size: bytes of the plain part.
    """

    step: int
    scores: Mapping[str, float]
    strides: Mapping[str, list[int]]
    plain_size: int = 0


def named(folder: Path, step: int, /) -> Path:
    """The file of a checkpoint."""
    return folder / f"step-{step:09d}.safetensors"


def step_of(path: Path, /) -> int | None:
    """The step of a checkpoint by the name of its file; None where it is called otherwise."""
    match = NAME.fullmatch(path.name)
    return int(match["step"]) if match else None


def written_about(step: int, scores: Mapping[str, float], strides: Mapping[str, list[int]], /) -> str:
    """What `read_about` reads."""
    hexadecimal = {name: score.hex() for name, score in scores.items()}  # JSON knows no NaN
    return json.dumps({"step": step, "scores": hexadecimal, "strides": strides})


def read_about(path: Path, /) -> About:
    """What a checkpoint says of itself.

    Raises:
        ValueError: the file is truncated, damaged or no checkpoint, or was renamed.
        FileNotFoundError: there is no such file.
    """
    with TensorFile(path) as file:
        leaves = described(path, file).leaves
        stored = file.tensors.get(_PLAIN)
    text = leaves.get(_ABOUT, {}).get("value")
    if not isinstance(text, str) or stored is None or len(stored.shape) != 1:
        raise ValueError(f"{path} is a file of fluxlike.save, but no checkpoint of a run")
    try:
        about = _parsed(text, stored.shape[0])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} says of itself what can't be read: {error}") from error
    if about.step != step_of(path):
        raise ValueError(f"{path} is the checkpoint of step {about.step}, renamed")
    return about


def _parsed(text: str, plain_size: int) -> About:
    about: dict[str, Any] = read_json(text)
    step, strides = about["step"], about["strides"]
    if type(step) is not int or not isinstance(strides, dict):
        raise ValueError(f"step {shown(step)}, strides {shown(strides)}")
    if not all(isinstance(found, list) for found in strides.values()):
        raise ValueError("strides are no lists")
    return About(step, {k: float.fromhex(v) for k, v in about["scores"].items()}, strides, plain_size)


def read_entry(path: Path, /) -> Entry:
    """A checkpoint by its header, whatever is wrong with it.

    Raises:
        FileNotFoundError: there is no such file.
    """
    step = step_of(path)
    if step is None:
        raise ValueError(f"{path} is not called as a checkpoint is")
    try:
        return Entry(step, path, read_about(path).scores)
    except FileNotFoundError:
        raise
    except (ValueError, OSError) as error:
        return Entry(step, path, fault=str(error))
