"""``python -m fluxlike predict MODEL INPUT…``: what a model of `train` says of images or of rows."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fluxlike.aligned import aligned
from fluxlike.command.arguments import Subparsers, add_json, count
from fluxlike.command.config import Csv, ImageFolder
from fluxlike.command.devices import device_of
from fluxlike.command.model_file import About, read_model
from fluxlike.command.pictures import found_images, picture
from fluxlike.command.printing import Line, escaped, show, show_json
from fluxlike.command.tables import read_features
from fluxlike.files.durable import write_whole
from fluxlike.learning.history.files import csv_lines, encoded
from fluxlike.learning.interpretation.predictions import class_probabilities
from fluxlike.placement.device import to_device
from fluxlike.scope.mode import mode
from fluxlike.trees.show import plural

__all__ = ["add", "run"]


class _Observation(NamedTuple):
    """An image or a row: its file, the row's number from 1, and what the model says."""

    file: str
    row: int | None
    outputs: Tensor


def add(commands: Subparsers[Any], common: argparse.ArgumentParser, /) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "predict",
        parents=[common],
        help="what a model of train says of images or of rows of a table",
        description=(
            "Show what a model of `train` says of images or of the rows of tables: classes with their "
            "probabilities, or values. Nothing in the file of the model is run."
        ),
        epilog=(
            "Images are brought to the size of the training. Tables need the columns of the training, by "
            "their names, in any order, and may have others."
        ),
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help="model.safetensors in the output folder of a run")
    parser.add_argument(
        "inputs", metavar="INPUT", nargs="+", help="image files, folders of images, or CSV files"
    )
    parser.add_argument(
        "--top", type=count, metavar="K", help="how many classes to show, the likeliest first (1)"
    )
    parser.add_argument("--device", default="auto", help='where to compute, such as "cpu" (auto)')
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--csv", metavar="OUT", help="write a CSV file instead of a table")
    add_json(form)
    parser.set_defaults(run=run)


def run(given: argparse.Namespace, /) -> None:
    """Print or write what the model says."""
    about, model = read_model(given.model)
    top = _top(given, about)
    device = device_of(given.device, "--device")
    model = to_device(model, device)

    def outputs(x: Tensor) -> Tensor:
        with torch.no_grad(), mode("test"):
            return model(x.to(device)).cpu()

    data = about.run.data
    if isinstance(data, Csv):
        found = list(_of_rows(data, about.columns, outputs, given.inputs))
    else:
        found = list(_of_images(data, outputs, given.inputs))
    if given.json:
        show_json([_as_json(about, x, top) for x in found])
        return
    rows = [_row(about, x, top) for x in found]
    if given.csv is not None:
        write_whole(given.csv, encoded(csv_lines(list(rows[0]), rows)))
        show([Line(escaped(f"{given.csv}: {plural(len(rows), 'row')}"))])
    else:
        show(_lines(rows))


def _top(given: argparse.Namespace, about: About) -> int:
    """How many classes to show of each observation."""
    if about.classes is None:
        if given.top is not None:
            raise ValueError(f"--top is for classes, and {given.model} predicts values; leave it out")
        return 0
    return min(given.top or 1, len(about.classes))


def _of_images(
    data: ImageFolder, outputs: Callable[[Tensor], Tensor], inputs: list[str]
) -> Iterator[_Observation]:
    paths = found_images(inputs)
    for start in range(0, len(paths), data.batch_size):
        some = paths[start : start + data.batch_size]
        images = torch.stack([picture(path, data) for path in some])
        for path, found in zip(some, outputs(images), strict=True):
            yield _Observation(str(path), None, found)


def _of_rows(
    data: Csv, names: tuple[str, ...], outputs: Callable[[Tensor], Tensor], inputs: list[str]
) -> Iterator[_Observation]:
    for path in inputs:
        features = read_features(path, names, data.delimiter)
        found = (y for x in features.split(data.batch_size) for y in outputs(x))
        for row, y in enumerate(found, 1):
            yield _Observation(path, row, y)


def _likeliest(about: About, x: _Observation, top: int) -> list[tuple[str, float]]:
    """The classes with their probabilities, the likeliest first; of equal ones the first."""
    probabilities, order = class_probabilities(x.outputs[None])[0].sort(descending=True, stable=True)
    pairs = zip(order[:top].tolist(), probabilities[:top].tolist(), strict=True)
    return [((about.classes or ())[i], probability) for i, probability in pairs]


def _place(x: _Observation) -> dict[str, Any]:
    return {"file": x.file} if x.row is None else {"file": x.file, "row": x.row}


def _as_json(about: About, x: _Observation, top: int) -> dict[str, Any]:
    if about.classes is None:
        return {**_place(x), "value": x.outputs.item()}
    found = [{"class": name, "probability": share} for name, share in _likeliest(about, x, top)]
    return {**_place(x), "classes": found}


def _row(about: About, x: _Observation, top: int) -> dict[str, Any]:
    """A row of the table by its columns."""
    if about.classes is None:
        return {**_place(x), "value": x.outputs.item()}
    row = _place(x)
    for number, (name, share) in enumerate(_likeliest(about, x, top), 1):
        place = "" if number == 1 else f" {number}"
        row |= {f"class{place}": name, f"probability{place}": share}
    return row


def _lines(rows: Sequence[dict[str, Any]]) -> Iterator[Line]:
    names = list(rows[0])
    right = [i for i, name in enumerate(names) if name.startswith(("row", "probability", "value"))]
    table = aligned([names, *([_cell(name, row[name]) for name in names] for row in rows)], right)
    for number, text in enumerate(table):
        yield Line(text, "" if number else "bold")


def _cell(name: str, value: Any) -> str:
    if name.startswith("probability"):
        return f"{value:.4f}"
    return f"{value:.6g}" if isinstance(value, float) else escaped(str(value))
