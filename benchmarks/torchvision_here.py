"""torchvision beside a CPU build of torch, where its compiled operators don't load.

Its Python declares what they compute on fake tensors, which fails where the operators are not there; so
their names are declared first. None of them is called by a classifier.
"""

from __future__ import annotations

import importlib
import re
import sys
from typing import Any

import torch

_library = torch.library.Library("torchvision", "FRAGMENT")


def torchvision() -> Any:
    """The package.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    _declare_missing()
    return importlib.import_module("torchvision")


def _declare_missing() -> None:
    for _ in range(40):  # each round declares one operator
        try:
            importlib.import_module("torchvision")
            return
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None:
                raise
            _library.define(f"{missing[1]}(Tensor x) -> Tensor")
        for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
