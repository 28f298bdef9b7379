"""torchvision beside a CPU build of torch, where its compiled operators don't load.

Its Python declares what they compute on fake tensors, which fails where the operators are not there; so
their names are declared first. None of them is called by a classifier. transformers, timm and torchmetrics
import torchvision where it is installed, so this goes before them.
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
        ImportError: it is not installed, or does not fit this torch.
    """
    for _ in range(40):  # each round declares one operator
        try:
            return importlib.import_module("torchvision")
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None:
                raise ImportError(f"torchvision does not fit this torch: {error}") from error
            _library.define(f"{missing[1]}(Tensor x) -> Tensor")
        for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
    raise ImportError("torchvision does not fit this torch: too many of its operators are missing")
