"""torchvision beside a CPU build of torch, where its compiled operators don't load.

Its Python declares what they compute on fake tensors, which fails where the operators are not there; so
their names are declared first. None of them is called by a classifier. transformers and timm import
torchvision where it is installed, so their tests import this before.
"""

from __future__ import annotations

import importlib
import re
import sys
from types import ModuleType

import pytest
import torch

_library = torch.library.Library("torchvision", "FRAGMENT")


def torchvision() -> ModuleType:
    """The package, or a skip that says why."""
    if isinstance(_found, str):
        pytest.skip(_found)
    return _found


def _load() -> ModuleType | str:
    """The package, or why it can't be imported."""
    for _ in range(40):  # each round declares one operator
        try:
            return importlib.import_module("torchvision")
        except ImportError as error:
            return f"torchvision can't be imported: {error}"
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None:
                return f"torchvision does not fit this torch: {error}"
            _library.define(f"{missing[1]}(Tensor x) -> Tensor")
        for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
    return "torchvision does not fit this torch: too many of its operators are missing"


_found = _load()
