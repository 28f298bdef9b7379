"""`to_torch`: a model of fluxlike as an `nn.Module`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from fluxlike.bridges.torch_modules.node import TorchModule
from fluxlike.bridges.torch_modules.restored import restored
from fluxlike.bridges.torch_modules.tree_layout import Slot, name_of
from fluxlike.bridges.torch_modules.tree_module import class_for
from fluxlike.optimisers.state import is_param_state
from fluxlike.transforms.jit.function import Jitted
from fluxlike.trees.leaves import Assigned
from fluxlike.trees.paths import children, is_node
from fluxlike.trees.structure import flatten, structure_of
from fluxlike.trees.trainables import parameters

__all__ = ["to_torch"]


def to_torch(model: Any, /) -> nn.Module:
    """A model as an `nn.Module`: for torch.optim, Lightning, accelerate, ``torch.export`` and ONNX.

    The names in its ``state_dict()`` are the model's paths as torch writes them, ``layers.0.weight`` for
    ``.layers[0].weight``; so `to_torch_optimiser` and `from_torch_optimiser` know which parameter is which.
    Parameters of the model are parameters, buffers are buffers, with copies of the tensors: training the
    module never changes the model. Tied tensors are one tensor at several places; one that is a parameter at
    any of them is a parameter at all. Constants ride along. An attribute or key with the name of something
    that every module has, such as ``type``, gets an underscore, ``type_``; a key with a dot in it leads
    through modules, as torch reads it.

    What `from_torch` made becomes a module of its own class again. Of others, calls run the model, with the
    arguments of its ``__call__``. The mode is that of the module: new ones
    train until ``module.eval()``. Buffers that layers assign are written. ``module.tree()`` is the model
    with the trained values.

    Args:
        model: a tree that can be called: a layer, a Chain, an object of any registered class.

    Returns:
        A `TreeModule`, on the model's device and of its dtypes; or a module of the class that was wrapped.

    Raises:
        TypeError: `model` can't be called, is a function without tensors of its own, or is a module already.
        ValueError: a tensor is on the meta device, the tree is one of gradients, or two places have one name
            in torch, or an empty one.

    Example:
        >>> import torch, fluxlike as fl
        >>> model = fl.Chain(fl.Dense(3, 8, fl.tanh), fl.Dense(8, 1))
        >>> module = fl.to_torch(model)
        >>> list(module.state_dict())
        ['layers.0.weight', 'layers.0.bias', 'layers.1.weight', 'layers.1.bias']
        >>> optimiser = torch.optim.Adam(module.parameters(), lr=1e-2)
        >>> x, y = torch.randn(16, 3), torch.randn(16, 1)
        >>> for _ in range(3):
        ...     optimiser.zero_grad()
        ...     (module(x) - y).square().mean().backward()
        ...     optimiser.step()
        >>> trained = module.tree()
        >>> fl.tree.allclose(trained, model)
        False
        >>> module
        to_torch(Chain(
          Dense(3, 8, tanh),  # 32 parameters
          Dense(8, 1),        # 9 parameters
        ))                    # Total: 4 tensors, 41 parameters, 164 bytes
    """
    _require_model(model)
    leaves, treedef = flatten(model)
    structure = structure_of(treedef)
    trained = parameters(leaves, structure.trainable).number
    made: dict[int, Tensor] = {}
    with torch.inference_mode(False):
        for i, x in enumerate(leaves):
            _require_value(x, structure.paths[i])
            if isinstance(x, Tensor) and id(x) not in made:
                copy = x.detach().clone()
                made[id(x)] = nn.Parameter(copy) if id(x) in trained else copy
        return _module_of(model, lambda x: made[id(x)])


def _module_of(node: Any, stand_in: Callable[[Tensor], Tensor], /) -> nn.Module:
    """The module of a node, with the parameter or buffer that `stand_in` gives for each of its tensors."""
    leaves, treedef = flatten(node)
    slots: dict[int, Slot] = {}
    for x in leaves:
        if isinstance(x, Tensor) and id(x) not in slots:
            slots[id(x)] = Slot(isinstance(stand_in(x), nn.Parameter))
    bare = treedef.unflatten([slots.get(id(x), x) if isinstance(x, Tensor) else x for x in leaves])
    return _module(node, bare, stand_in, "")


def _require_model(model: Any) -> None:
    if isinstance(model, nn.Module):
        raise TypeError(f"to_torch got a {type(model).__name__}, which is a torch.nn.Module already")
    if isinstance(model, type):
        raise TypeError(f"to_torch got the class {model.__name__}: write to_torch({model.__name__}(…))")
    if isinstance(model, Jitted):
        raise TypeError(f"to_torch got {model!r}, a compiled function; give the model itself")
    if not callable(model):
        hint = "; write to_torch(Chain(*layers))" if isinstance(model, (tuple, list)) else _HINT
        raise TypeError(
            f"to_torch takes a model, a tree that can be called, found a {type(model).__name__}{hint}"
        )
    if any(map(is_param_state, flatten(model, is_param_state)[0])):
        raise TypeError("to_torch got the state of an optimiser; give the model that it was set up for")
    if not is_node(model):
        name = getattr(model, "__name__", type(model).__name__)
        raise TypeError(
            f"to_torch takes a model, found the function {name}; a module would not have the tensors that it "
            f"closes over{_HINT}"
        )


_HINT = "; make a class with a __call__ that holds the tensors, under @fluxlike.functor"


def _require_value(x: Any, path: str) -> None:
    if isinstance(x, Assigned):
        raise ValueError(f"{path} holds an Assigned: this is a tree of gradients; give the model")
    if isinstance(x, Tensor) and x.is_meta:
        raise ValueError(
            f"{path} is on the meta device and has no values; load them first, by fluxlike.load(path, "
            "like=model), or make the model on a device"
        )


def _module(node: Any, bare: Any, stand_in: Callable[[Tensor], Tensor], path: str) -> nn.Module:
    """The module of a node; `bare` is the same node with slots."""
    if isinstance(node, TorchModule):
        return restored(node, stand_in, lambda layer: _module_of(layer, stand_in))
    kind: Any = type(node)
    module = class_for(kind)(bare)
    inner = dict(children(bare))
    for step, child in children(node):
        where = path + step.text
        if isinstance(child, Tensor):
            _put(module, name_of(step), stand_in(child), where)
        elif is_node(child):
            _put(module, name_of(step), _module(child, inner[step], stand_in, where), where)
    return module


class _Names(nn.Module):
    """What a key with a dot leads through."""


def _put(module: nn.Module, name: str, x: Tensor | nn.Module, path: str) -> None:
    *above, last = name.split(".")
    if not all((*above, last)):
        raise ValueError(f"{path} would be {name!r} in torch, where no name is empty; rename the key")
    for part in above:
        inner = getattr(module, part, None)
        if inner is None:
            inner = _Names()
            module.add_module(part, inner)
        if not isinstance(inner, _Names):
            _report_clash(name, path)
        module = inner
    if hasattr(module, last):
        _report_clash(name, path)
    if isinstance(x, nn.Module):
        module.add_module(last, x)
    elif isinstance(x, nn.Parameter):
        module.register_parameter(last, x)
    else:
        module.register_buffer(last, x)


def _report_clash(name: str, path: str) -> NoReturn:
    raise ValueError(f"{path} would be {name!r} in torch, as would another place; rename one of the keys")
