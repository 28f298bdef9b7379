"""`from_torch`: any torch module as a tree of parameters."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fluxlike._private.lazy_clone import shared_until_written
from fluxlike._private.modules import (
    buffers_of,
    children_of,
    has_hooks,
    is_uninitialised,
    parameters_of,
    stripped_copy,
)
from fluxlike.bridges.torch_modules.classes import RIDING, class_for
from fluxlike.bridges.torch_modules.node import TorchModule
from fluxlike.bridges.torch_modules.restored import restored
from fluxlike.bridges.torch_modules.skeleton import Skeleton
from fluxlike.bridges.torch_modules.to_torch import converters

__all__ = ["from_torch"]


def from_torch(module: nn.Module, /, *inputs: Any, **named: Any) -> TorchModule:
    """A torch module as a tree of parameters, which every transform and update takes.

    The children of the tree are those of the module, under the same names. Tensors lie in the memory of the
    module until somebody writes to either, so there is no second copy of the weights, and the module is
    never changed. Calls run the module's own forward, with its hooks, in the mode of the scope instead of
    the module's, and with draws from the key in scope.

    Args:
        module: any `torch.nn.Module`: of torchvision, timm, transformers or your own. Parameters that do
            not require grad are buffers here, which are not trained.
        inputs: for a module with lazy parameters, an example of its inputs; a copy of it is called once
            on them, in test mode, to find the shapes.
        named: the same, by keyword.

    Returns:
        A tree whose root can be called as the module is. Modules that stand at several places, and tied
        parameters, are tied.

    Raises:
        TypeError: `module` is no module, or one that has no Python forward of its own (a scripted one).
        ValueError: a lazy module without `inputs`, or one that can't be copied.

    Example:
        >>> import torch, fluxlike as fl
        >>> model = fl.from_torch(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)))
        >>> model
        Sequential(
          [0]: Linear(in_features=3, out_features=4, bias=True),  # 16 parameters
        )
        >>> grads = fl.gradient(lambda m, x: m(x).square().sum(), model, torch.ones(2, 3))
        >>> grads[0].weight.shape, grads[1].running_mean
        (torch.Size([4, 3]), Assigned(float32[4]))
    """
    _require_module(module)
    if inputs or named:
        module = _with_shapes(module, inputs, named)
    for path, m in module.named_modules():
        for name, x in (*parameters_of(m).items(), *buffers_of(m).items()):
            if is_uninitialised(x):
                raise ValueError(
                    f"{path}.{name} of the module has no shape yet: write from_torch(module, x) with an "
                    "example of its inputs, or call the module once before"
                )
    _warn_of_hooks(module)
    return _Builder().node(module, _copied(module, _on_meta))


def _with_shapes(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> nn.Module:
    """A copy of a lazy module that was called once, in test mode."""
    called = _copied(module, _cloned).eval()
    with torch.no_grad():
        called(*inputs, **named)
    return called


def _cloned(x: Tensor) -> Tensor:
    if is_uninitialised(x):
        lazy: Any = type(x)
        return lazy(requires_grad=x.requires_grad, device=x.device, dtype=x.dtype)
    return nn.Parameter(x.detach().clone(), x.requires_grad) if isinstance(x, nn.Parameter) else x.clone()


def _require_module(module: Any) -> None:
    if isinstance(module, TorchModule):
        raise TypeError("from_torch got what it returned before: the model is a tree already")
    if isinstance(module, type) and issubclass(module, nn.Module):
        raise TypeError(f"from_torch got the class {module.__name__}: write from_torch({module.__name__}(…))")
    if not isinstance(module, nn.Module):
        raise TypeError(f"from_torch takes a torch.nn.Module, found a {type(module).__name__}")
    for path, m in module.named_modules():
        if isinstance(m, torch.jit.ScriptModule):
            raise TypeError(
                f"{path or 'the module'} is a scripted module, whose forward is not Python; give the "
                "module that it was scripted from"
            )


def _warn_of_hooks(module: nn.Module) -> None:
    hooked = [name for name, p in module.named_parameters() if has_hooks(p)]
    if hooked:
        warnings.warn(
            f"hooks on parameters, here of {hooked[0]}, are not run by from_torch: gradients are values that "
            "gradient returns; change them there, or by a link of the optimiser",
            stacklevel=3,
        )


def _copied(module: nn.Module, stand_in: Callable[[Tensor], Tensor]) -> nn.Module:
    try:
        return stripped_copy(module, stand_in)
    except Exception as error:
        raise ValueError(
            "from_torch makes a copy of the module without its tensors, and copy.deepcopy of this "
            f"{type(module).__name__} fails: {type(error).__name__}: {error}"
        ) from error


def _on_meta(x: Tensor) -> Tensor:
    """A tensor of the same shape and kind that holds no memory."""
    empty = torch.empty_like(x.detach(), device="meta") if type(x) in _PLAIN else x.detach().to("meta")
    return nn.Parameter(empty, x.requires_grad) if isinstance(x, nn.Parameter) else empty


_PLAIN = (Tensor, nn.Parameter)


class _Builder:
    """Makes the nodes of a module: one for a module that stands at several places, and so for tensors."""

    def __init__(self) -> None:
        self._nodes: dict[int, TorchModule] = {}
        self._leaves: dict[int, Tensor] = {}

    def node(self, module: nn.Module, bare: nn.Module) -> TorchModule:
        known = self._nodes.get(id(module))
        if known is not None:
            return known
        parameters, buffers = parameters_of(module), buffers_of(module)
        frozen = [name for name, p in parameters.items() if p is not None and not p.requires_grad]
        names = (*parameters, *buffers, *children_of(module))
        cls = class_for(TorchModule, type(module), names, (*buffers, *frozen))
        node: TorchModule = object.__new__(cls)
        attributes = node.__dict__
        for name, x in (*parameters.items(), *buffers.items()):
            attributes[name] = x if x is None else self._leaf(x)
        skeleton = attributes[RIDING] = Skeleton(bare)
        self._nodes[id(module)] = node
        for name, child in children_of(module).items():
            inner = children_of(bare)[name]
            if child is None or inner is None:
                attributes[name] = None
            else:
                attributes[name] = self.node(child, inner)
                skeleton.children[name] = getattr(attributes[name], RIDING)
        return node

    def _leaf(self, x: Tensor) -> Tensor:
        if id(x) not in self._leaves:
            shared = shared_until_written(x)
            if shared is None:  # a parameter of torch is never written to, any other tensor might be
                shared = x if isinstance(x, nn.Parameter) else x.detach().clone()
            self._leaves[id(x)] = shared
        return self._leaves[id(x)]


converters[TorchModule] = restored
