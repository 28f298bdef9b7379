"""Draws a picture for each example, of what it finds: ``python docs/pictures/draw_gallery.py [NAME...]``.

A picture is a function of its example's module, with its name, in one of the files of ``gallery``, which are
the sections of the page. Most train for less time than the example; all together take a quarter of an hour.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path

import torch
from gallery import basics, card, drawing, seeing, transforms, writing

PICTURES = {
    name: picture
    for section in (basics, transforms, seeing, drawing, writing)
    for name, picture in inspect.getmembers(section, inspect.isfunction)
    if picture.__module__ == section.__name__ and not name.startswith("_")
}


def main(names):
    sys.path.insert(0, str(card.ROOT / "examples"))
    for name in names or PICTURES:
        if name not in PICTURES:
            raise SystemExit(f"there is no picture of {name!r}; there are {', '.join(PICTURES)}")
        torch.manual_seed(0)
        figure = PICTURES[name](importlib.import_module(name))
        path = Path(__file__).parent / "gallery" / f"{name}.png"
        card.write(figure, path)
        print(path, f"{path.stat().st_size:,} bytes", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
