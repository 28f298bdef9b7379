"""Data sets and configurations for the tests of ``train`` and ``predict``."""

import csv
import random

from sklearn import datasets

SHAPES = ("circle", "cross", "square")


def draw_shapes(folder, each=40, seed=0):
    """A folder of pictures of three shapes, a folder a class."""
    from PIL import Image, ImageDraw

    draw = random.Random(seed)
    for kind in SHAPES:
        (folder / kind).mkdir(parents=True)
        for i in range(each):
            ground, colour = (tuple(draw.randrange(*span) for _ in range(3)) for span in ((60,), (150, 256)))
            image = Image.new("RGB", (36, 32), ground)
            pen = ImageDraw.Draw(image)
            x, y, r = draw.randrange(10, 26), draw.randrange(10, 22), draw.randrange(6, 10)
            box = (x - r, y - r, x + r, y + r)
            if kind == "circle":
                pen.ellipse(box, fill=colour)
            elif kind == "square":
                pen.rectangle(box, fill=colour)
            else:
                pen.line(box, fill=colour, width=3)
                pen.line((x - r, y + r, x + r, y - r), fill=colour, width=3)
            image.save(folder / kind / f"{i:03}.png")


def write_table(path, name):
    """One of scikit-learn's tables as CSV; classes by their names."""
    data = getattr(datasets, f"load_{name}")()
    names = getattr(data, "target_names", None)
    targets = data.target if names is None else names[data.target]
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*(column.replace(",", "") for column in data.feature_names), "target"])
        writer.writerows([*x, y] for x, y in zip(data.data.tolist(), targets.tolist(), strict=True))


def configuration(folder, data, model, output="run", **training):
    """A configuration file in a folder; sections are dicts."""
    lines = []
    sections = {"data": data, "model": model, "training": training, "output": {"folder": output}}
    for section, keys in sections.items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {_toml(value)}" for key, value in keys.items()]
    path = folder / f"{output}.toml"
    path.write_text("\n".join(lines))
    return str(path)


def iris(folder, output="run", hidden=(32,), data=(), **training):
    """The configuration of a small run on iris."""
    if not (folder / "iris.csv").exists():
        write_table(folder / "iris.csv", "iris")
    table = {"kind": "csv", "path": "iris.csv", "target": "target", **dict(data)}
    model = {"kind": "mlp", "hidden": list(hidden)}
    return configuration(folder, table, model, output, **{"epochs": 20, "lr": 0.02, **training})


def _toml(value):
    if isinstance(value, bool):
        return str(value).lower()
    return repr(list(value)) if isinstance(value, (list, tuple)) else repr(value)
