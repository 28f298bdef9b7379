"""The configuration of a training run: a TOML file, read strictly."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from fluxlike.command.keys import (
    Key,
    choice,
    each,
    nearest,
    number,
    path,
    section,
    share_or_path,
    text,
    truth,
    whole,
)
from fluxlike.files.opening import open_regular
from fluxlike.files.printing import shown
from fluxlike.learning.precision import DTYPES

__all__ = [
    "Cnn", "Configuration", "Csv", "ImageFolder", "Mlp", "Output", "Torchvision", "Training", "configured",
    "read_configuration",
]  # fmt: skip

_LARGEST = 1_000_000  # bytes
_TORCHVISION = "torchvision:"
_WIDTHS = each(whole(1), "a list of whole numbers of at least 1")
_SHARE = number(at_least=0, below=1)
_DEVICE = text(
    'a device of torch such as "cuda" or "cuda:1", or "auto"',
    lambda x: re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(:[0-9]{1,3})?", x) is not None,
)
_MODEL = text('"torchvision:" and the name of a model', lambda x: x[len(_TORCHVISION) :].isidentifier())


@dataclass(frozen=True)
class ImageFolder:
    """``[data] kind = "image_folder"``: a folder of images a class."""

    kind: Annotated[str, Key(choice("image_folder"), "what the data is")]
    path: Annotated[Path, Key(path(), "the folder that holds a folder a class")]
    size: Annotated[int, Key(whole(1), "height and width to which images are brought, in pixels")] = 128
    channels: Annotated[
        int, Key(whole(1), "how many of the images are read, 3 for colours or 1 for grey")
    ] = 3
    batch_size: Annotated[int, Key(whole(1), "how many images a step takes")] = 32
    workers: Annotated[int, Key(whole(0), "how many processes read images")] = 0
    validation: Annotated[float | Path, Key(share_or_path(), "what is kept for validation")] = 0.2


@dataclass(frozen=True)
class Csv:
    """``[data] kind = "csv"``: a table whose columns are numbers, but for the target, which may be names."""

    kind: Annotated[str, Key(choice("csv"), "what the data is")]
    path: Annotated[Path, Key(path(), "the table")]
    target: Annotated[str, Key(text(), "the column to predict")]
    task: Annotated[str, Key(choice("classification", "regression"), "what the target is")] = "classification"
    leave_out: Annotated[
        tuple[str, ...], Key(each(text(), "a list of texts"), "columns not to predict from")
    ] = ()
    delimiter: Annotated[
        str, Key(text("one character in quotes", lambda x: len(x) == 1), "what stands between columns")
    ] = ","
    batch_size: Annotated[int, Key(whole(1), "how many rows a step takes")] = 32
    workers: Annotated[int, Key(whole(0), "how many processes read rows")] = 0
    validation: Annotated[float | Path, Key(share_or_path(), "what is kept for validation")] = 0.2


@dataclass(frozen=True)
class Cnn:
    """``[model] kind = "cnn"``: convolutions, each halving the image, then the mean over the image."""

    kind: Annotated[str, Key(choice("cnn"), "what the model is")]
    channels: Annotated[tuple[int, ...], Key(_WIDTHS, "how many each convolution has")] = (32, 64, 128)
    dropout: Annotated[float, Key(_SHARE, "the share of features to drop before the last layer")] = 0.0


@dataclass(frozen=True)
class Mlp:
    """``[model] kind = "mlp"``: layers of all numbers of an observation."""

    kind: Annotated[str, Key(choice("mlp"), "what the model is")]
    hidden: Annotated[
        tuple[int, ...],
        Key(_WIDTHS, "the widths of the hidden layers"),
    ] = (128, 128)
    dropout: Annotated[float, Key(_SHARE, "the share of features to drop after each of them")] = 0.0


@dataclass(frozen=True)
class Torchvision:
    """``[model] kind = "torchvision:resnet18"``: a model of torchvision by its name."""

    kind: Annotated[str, Key(_MODEL, "what the model is")]
    weights: Annotated[Path | None, Key(path(), "a file of weights to start from")] = None

    @property
    def name(self) -> str:
        """The name of the model in ``torchvision.models``."""
        return self.kind.removeprefix(_TORCHVISION)


@dataclass(frozen=True)
class Training:
    """``[training]``: for how long, and how."""

    epochs: Annotated[int, Key(whole(1), "how often all data is gone through")] = 10
    lr: Annotated[float, Key(number(above=0), "the learning rate, the largest of a schedule")] = 1e-3
    rule: Annotated[
        str,
        Key(
            choice("Adam", "AdamW", "Lion", "Momentum", "Nesterov", "RMSProp", "Descent"),
            "the rule of the steps",
        ),
    ] = "AdamW"
    schedule: Annotated[
        str, Key(choice("one_cycle", "cosine", "constant"), "how the learning rate moves")
    ] = "one_cycle"
    precision: Annotated[str, Key(choice("float32", *DTYPES), "in what the model computes")] = "float32"
    jit: Annotated[bool, Key(truth(), "whether to compile the step")] = False
    seed: Annotated[int, Key(whole(0), "what all that is random is drawn from")] = 0
    device: Annotated[str, Key(_DEVICE, "where to compute")] = "auto"


@dataclass(frozen=True)
class Output:
    """``[output]``: where to write to."""

    folder: Annotated[Path, Key(path(), "where model, history and checkpoints go")] = Path("run")


@dataclass(frozen=True)
class Configuration:
    """A training run: its data, its model, how it is trained, and where it writes to."""

    data: ImageFolder | Csv
    model: Cnn | Mlp | Torchvision
    training: Training
    output: Output


#: The classes of each section, by kind where it has kinds.
_SECTIONS: dict[str, dict[str, type]] = {
    "data": {"image_folder": ImageFolder, "csv": Csv},
    "model": {"cnn": Cnn, "mlp": Mlp, "torchvision:…": Torchvision},
    "training": {"": Training},
    "output": {"": Output},
}


def read_configuration(path: str | os.PathLike[str], /) -> Configuration:
    """A configuration from a TOML file. Paths in it start at its folder.

    Args:
        path: the file.

    Returns:
        The configuration. Nothing but the file is looked at, so the data may be missing.

    Raises:
        ValueError: it is no TOML, or a key is missing, not known, or of a value that it does not take; the
            message names the key, what was found, and what was expected.
        FileNotFoundError: there is no such file.
    """
    with open_regular(path) as file:
        raw = file.read(_LARGEST + 1)
    if len(raw) > _LARGEST:
        raise ValueError(f"{path} is larger than {_LARGEST} bytes, which no configuration is")
    try:
        return configured(tomllib.loads(raw.decode()), Path(path).absolute().parent)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is no TOML: {error}") from None
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def configured(found: Mapping[str, Any], folder: Path, /) -> Configuration:
    """A configuration from tables by section.

    Args:
        found: the tables, as tomllib reads them.
        folder: where relative paths start.

    Raises:
        ValueError: a section or key is missing, not known, or of a value that it does not take.

    Example:
        >>> from pathlib import Path
        >>> data = {"kind": "csv", "path": "iris.csv", "target": "species"}
        >>> tables = {"data": data, "model": {"kind": "mlp"}, "training": {"epochs": 3}}
        >>> run = configured(tables, Path("/runs"))
        >>> run.training.epochs, run.training.rule, run.data.path.as_posix()
        (3, 'AdamW', '/runs/iris.csv')
    """
    _require_sections(found)
    run = Configuration(*(_read(name, found.get(name, {}), folder) for name in _SECTIONS))
    _require_agreement(run)
    return run


def _require_sections(found: Mapping[str, Any]) -> None:
    known = ", ".join(f"[{name}]" for name in _SECTIONS)
    for name, table in found.items():
        if name in _SECTIONS and isinstance(table, dict):
            continue
        if name in _SECTIONS:
            raise ValueError(f"{name} is {shown(table)}; expected a section, which starts by [{name}]")
        if not isinstance(table, dict):
            places = [place for place in _places() if place.partition("] ")[2] == name]
            where = f"there is {' and '.join(places)}" if places else f"the sections are {known}"
            raise ValueError(f"the key {shown(name)} stands in no section; {where}")
        close = nearest(name, _SECTIONS)
        hint = f"did you mean [{close}]?" if close else f"the sections are {known}"
        raise ValueError(f"there is no section [{name}]; {hint}")
    for name in ("data", "model"):
        if name not in found:
            kinds = " or ".join(f'kind = "{kind}"' for kind in _SECTIONS[name])
            raise ValueError(f"there is no section [{name}]; write one, with {kinds}")


def _read(name: str, table: dict[str, Any], folder: Path) -> Any:
    kinds = _SECTIONS[name]
    cls = kinds[""] if "" in kinds else kinds[_kind(name, table, list(kinds))]
    return section(cls, name, table, folder, _places())


def _kind(name: str, table: dict[str, Any], kinds: list[str]) -> str:
    given = table.get("kind")
    expected = " or ".join(f'"{kind}"' for kind in kinds)
    if given is None:
        raise ValueError(f"[{name}] lacks kind: expected {expected}")
    if isinstance(given, str) and given.startswith(_TORCHVISION) and name == "model":
        return "torchvision:…"
    if given not in kinds or given == "torchvision:…":
        close = nearest(given, kinds) if isinstance(given, str) else None
        hint = f'; did you mean "{close}"?' if close else ""
        raise ValueError(f"[{name}] kind is {shown(given)}; expected {expected}{hint}")
    return str(given)


def _places() -> list[str]:
    """Every key with its section: ``"[training] lr"``."""
    places = {
        f"[{name}] {f.name}": None
        for name, kinds in _SECTIONS.items()
        for cls in kinds.values()
        for f in fields(cls)
    }
    return list(places)


def _require_agreement(run: Configuration) -> None:
    if isinstance(run.data, Csv) and not isinstance(run.model, Mlp):
        raise ValueError(
            f'[model] kind is "{run.model.kind}", which takes images, and [data] kind is "csv"; write '
            'kind = "mlp" in [model]'
        )
    if isinstance(run.data, ImageFolder) and run.data.channels not in (1, 3):
        raise ValueError(f"[data] channels is {run.data.channels}; expected 3 for colours or 1 for grey")
    if isinstance(run.model, Torchvision) and run.data.channels != 3:  # type: ignore[union-attr]
        raise ValueError(
            f'[model] kind is "{run.model.kind}", which takes 3 channels, and [data] channels is 1'
        )
    if isinstance(run.data, Csv) and run.data.target in run.data.leave_out:
        raise ValueError(f"[data] target is {shown(run.data.target)}, which leave_out holds too")
