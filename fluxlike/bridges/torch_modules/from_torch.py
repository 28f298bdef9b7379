"""`from_torch`: any torch module as a tree of parameters."""

from __future__ import annotations

import copy
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fluxlike._private.modules import (
    buffers_of,
    children_of,
    has_hooks,
    is_uninitialised,
    parameters_of,
    stripped_copy,
)
from fluxlike.bridges.torch_modules.classes import RIDING, class_for
from fluxlike.bridges.torch_modules.closures import refuse_closures
from fluxlike.bridges.torch_modules.node import TorchModule
from fluxlike.bridges.torch_modules.skeleton import Skeleton
from fluxlike.trees.fmap import fleaves
from fluxlike.trees.functor import spec_of
from fluxlike.trees.nodes import PIN
from fluxlike.trees.values import lent

__all__ = ["from_torch"]


def from_torch(module: nn.Module, /, *inputs: Any, **named: Any) -> TorchModule:
    """A torch module as a tree of parameters, which every transform and update takes.

    The children of the tree are those of the module, under the same names. Tensors lie in the memory of the
    module until the first update makes new ones, so there is no second copy of the weights; the tree never
    writes to them, donated or not, but sees what the module's owner writes. Calls run the module's own
    forward, with its hooks, in the mode of the scope instead of the module's, and with draws from the key in
    scope.

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
        ValueError: a lazy module without `inputs`, one that can't be copied, that contains itself, or
            whose hooks or attributes are functions that close over a part of it.

    Example:
        >>> import torch, fluxlike as fl
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
        >>> model = fl.from_torch(net)
        >>> [path for path, _ in fl.trainables(model, paths=True)]
        ['[0].weight', '[0].bias', '[1].weight', '[1].bias']
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
    refuse_closures(module)
    _refuse_layers_of_ours(module)
    _warn_of_hooks(module)
    _warn_of_shared_memory(module)
    return _Builder().node(module, _copied(module, _on_meta), "")


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


def _refuse_layers_of_ours(module: nn.Module) -> None:
    for path, m in module.named_modules():
        for name, x in vars(m).items():
            if not isinstance(x, type) and spec_of(type(x)) is not None and fleaves(x):
                place = f"{path}.{name}".lstrip(".")
                raise ValueError(
                    f"{place} of the module is a {type(x).__name__} of fluxlike, whose tensors torch doesn't "
                    "see; put fluxlike.to_torch(layer) there, or set it in the tree by fluxlike.at afterwards"
                )


def _warn_of_hooks(module: nn.Module) -> None:
    hooked = [name for name, p in module.named_parameters() if has_hooks(p)]
    if hooked:
        warnings.warn(
            f"hooks on parameters, here of {hooked[0]}, are not run by from_torch: gradients are values that "
            "gradient returns; change them there, or by a link of the optimiser",
            stacklevel=3,
        )


def _warn_of_shared_memory(module: nn.Module) -> None:
    """Say where in-place steps would keep two parameters alike, as after ``a.data = b.data``."""
    known: dict[tuple[Any, ...], str] = {}
    for name, p in module.named_parameters():
        if type(p) is nn.Parameter and p.layout is torch.strided and p.numel() and not p.is_meta:
            first = known.setdefault((p.data_ptr(), p.shape, p.stride(), p.dtype), name)
            if first != name:
                warnings.warn(
                    f"the parameters {first} and {name} share memory, and are not one parameter: updates "
                    "part them; tie them by assigning the parameter itself, not its .data",
                    stacklevel=3,
                )


def _copied(module: nn.Module, stand_in: Callable[[Tensor], Tensor]) -> nn.Module:
    try:
        return stripped_copy(module, stand_in)
    except Exception as error:
        where = _uncopied(module)
        raise ValueError(
            "from_torch makes a copy of the module without its tensors, and copy.deepcopy of "
            f"{where or f'this {type(module).__name__}'} fails: {type(error).__name__}: {error}; give it a "
            "__deepcopy__, or make it where it is used"
        ) from error


def _uncopied(module: nn.Module) -> str:
    """The attribute that can't be copied, by its place in the module."""
    for path, m in module.named_modules():
        for name, x in vars(m).items():
            if not isinstance(x, (nn.Module, Tensor)) and name not in ("_parameters", "_buffers", "_modules"):
                try:
                    copy.deepcopy(x, {id(inner): inner for inner in module.modules()})
                except Exception:
                    return f"{path}.{name}".lstrip(".")
    return ""


def _on_meta(x: Tensor) -> Tensor:
    """A tensor of the same shape and kind that holds no memory."""
    empty = torch.empty_like(x.detach(), device="meta") if type(x) in _PLAIN else x.detach().to("meta")
    return nn.Parameter(empty, x.requires_grad) if isinstance(x, nn.Parameter) else empty


_PLAIN = (Tensor, nn.Parameter)
_TAKEN = (RIDING, PIN, "torch_class", "extra_repr", "_buffer_names")


class _Builder:
    """Makes the nodes of a module: one for a module that stands at several places, and so for tensors."""

    def __init__(self) -> None:
        self._nodes: dict[int, TorchModule] = {}
        self._around: set[int] = set()

    def node(self, module: nn.Module, bare: nn.Module, path: str) -> TorchModule:
        known = self._nodes.get(id(module))
        if known is not None:
            if id(module) in self._around:
                raise ValueError(f"{path} of the module is a module around it: a tree can't contain itself")
            return known
        parameters, buffers = parameters_of(module), buffers_of(module)
        frozen = [name for name, p in parameters.items() if p is not None and not p.requires_grad]
        names = (*parameters, *buffers, *children_of(module))
        for name in names:
            if name in _TAKEN or (name.startswith("__") and name.endswith("__")):
                raise ValueError(f"{path}.{name} of the module has a name that a TorchModule uses; rename it")
        kind = parametrize.type_before_parametrizations(module)
        cls = class_for(TorchModule, kind, names, (*buffers, *frozen))
        node: TorchModule = object.__new__(cls)
        attributes = node.__dict__
        for name, x in (*parameters.items(), *buffers.items()):
            attributes[name] = x if x is None else self._leaf(x)
        skeleton = attributes[RIDING] = Skeleton(bare)
        self._nodes[id(module)] = node
        self._around.add(id(module))
        for name, child in children_of(module).items():
            inner = children_of(bare)[name]
            if child is None or inner is None:
                attributes[name] = None
            else:
                attributes[name] = self.node(child, inner, f"{path}.{name}")
                skeleton.children[name] = getattr(attributes[name], RIDING)
        self._around.remove(id(module))
        return node

    def _leaf(self, x: Tensor) -> Tensor:
        """The leaf for a tensor: one for each, also where two modules that are wrapped apart share it."""
        leaf, owner = (ref() for ref in _leaves.get(id(x), (_nothing, _nothing)))
        if leaf is None or owner is not x or not _same_memory(leaf, x):
            leaf = lent(x.detach())
            _leaves[id(x)] = weakref.ref(leaf), weakref.ref(x)
            weakref.finalize(x, _leaves.pop, id(x), None).atexit = False
        return leaf


_Ref = Callable[[], Tensor | None]
_leaves: dict[int, tuple[_Ref, _Ref]] = {}


def _nothing() -> None:
    return None


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and a.is_set_to(b)
