"""Models of torchvision by name, with a head for other classes, and weights from a local file alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fluxlike.bridges.torch_modules.from_torch import from_torch
from fluxlike.bridges.torch_modules.node import TorchModule
from fluxlike.command.config import Torchvision
from fluxlike.command.keys import nearest
from fluxlike.files.checkpoints import read_checkpoint
from fluxlike.files.printing import shown
from fluxlike.optional import optional

__all__ = ["torchvision_model"]


def torchvision_model(model: Torchvision, size: int, outputs: int, /) -> TorchModule:
    """A model of torchvision as a tree. Nothing is downloaded.

    Args:
        model: its section; the head of its weights is left out where it is for another number of classes.
        size: height and width of the images.
        outputs: how many classes.

    Raises:
        ImportError: torchvision is not installed.
        ValueError: there is no such model, it does not take such images, or the weights are of another one.
    """
    models = _torchvision()
    known = models.list_models(module=models)
    if model.name not in known:
        close = nearest(model.name, known)
        hint = f'did you mean "torchvision:{close}"?' if close else f"it has {', '.join(known)}"
        raise ValueError(
            f'[model] kind is "{model.kind}", and torchvision has no such model of images; {hint}'
        )
    _require_fit(models, model, size, outputs)
    module = models.get_model(model.name, weights=None, num_classes=outputs)
    if model.weights is not None:
        head = _head(models, model.name, outputs)
        module.load_state_dict(_weights(model.weights, model.name, module.state_dict(), head), assign=False)
    return from_torch(module)


def _torchvision() -> Any:
    """The module of torchvision's models."""
    try:
        return optional("torchvision.models", 'a model "torchvision:…"', install="torchvision")
    except RuntimeError as error:
        raise ImportError(
            f"torchvision is installed, and does not load beside torch {torch.__version__} ({error}): "
            "install both from one place, such as pip install torch torchvision"
        ) from error


def _require_fit(models: Any, model: Torchvision, size: int, outputs: int) -> None:
    """Call the model without data: some take images of one size alone, some give more than scores."""
    with torch.device("meta"):
        module = models.get_model(model.name, weights=None, num_classes=outputs)
        try:
            found = module.train()(torch.empty(2, 3, size, size))
        except (RuntimeError, ValueError, AssertionError) as error:
            raise ValueError(
                f'[model] kind is "{model.kind}", which does not take images of {size} × {size} ({error}); '
                "write another [data] size, such as 224"
            ) from None
    if not isinstance(found, Tensor):
        raise ValueError(
            f'[model] kind is "{model.kind}", which gives {type(found).__name__} in training, and not scores '
            'alone; write another, such as "torchvision:resnet18"'
        )


def _head(models: Any, name: str, outputs: int) -> set[str]:
    """The tensors whose shapes follow from the number of classes."""
    with torch.device("meta"):
        one, other = (
            models.get_model(name, weights=None, num_classes=n).state_dict() for n in (outputs, outputs + 1)
        )
    return {key for key in one if one[key].shape != other[key].shape}


def _weights(path: Path, name: str, own: dict[str, Tensor], head: set[str]) -> dict[str, Tensor]:
    """The weights of a file, with a new head where that in the file is for another number of classes."""
    found = read_checkpoint(path)
    missing, stray = sorted(own.keys() - found.keys()), sorted(found.keys() - own.keys())
    if missing or stray:
        said = [f"lacks {shown(missing[0])}"] if missing else []
        said += [f"has {shown(stray[0])}, which the model lacks"] if stray else []
        raise ValueError(f"[model] weights: {path} is of another model than {name}: it {' and '.join(said)}")
    for key, x in own.items():
        if x.shape != found[key].shape and key not in head:
            raise ValueError(
                f"[model] weights: {path} is of another model than {name}: {shown(key)} has the shape "
                f"{tuple(found[key].shape)} there, and {tuple(x.shape)} here"
            )
    other_head = any(own[key].shape != found[key].shape for key in head)
    return {key: x if other_head and key in head else found[key] for key, x in own.items()}
