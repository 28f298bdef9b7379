"""The classes of the nodes that stand for torch modules: one for each class of modules and their names."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

from torch import nn

from fluxlike._private.modules import NORMS, children_of
from fluxlike.layers.basic import Bilinear, Dense
from fluxlike.layers.batchnorm import BatchNorm
from fluxlike.layers.conv import Conv
from fluxlike.layers.conv_transpose import ConvTranspose
from fluxlike.layers.embedding import Embedding, EmbeddingBag
from fluxlike.layers.groupnorm import GroupNorm, InstanceNorm
from fluxlike.layers.layernorm import LayerNorm, RMSNorm
from fluxlike.placement.dtype import stays_float32
from fluxlike.trees.functor import register
from fluxlike.trees.nodes import PIN, Spec

__all__ = ["RIDING", "class_for"]

#: The attribute of a node that is no child: what runs its calls.
RIDING = "_torch"


_classes: dict[tuple[Any, ...], type] = {}
_lock = threading.Lock()


def class_for(base: type, kind: type[nn.Module], names: tuple[str, ...], buffers: tuple[str, ...]) -> type:
    """The class of the nodes for modules of a class: `base`, under the module's name.

    Args:
        base: what all of them have in common.
        kind: the class of the modules.
        names: of the children, in their order. They are part of the class because all nodes of one have
            them in one order, and a module says the order of its own.
        buffers: which of the modules' tensors are not trained. It is part of the class because a place is
            trainable or not by the class of its node.
    """
    key = base, kind, names, buffers
    known = _classes.get(key)
    if known is not None:
        return known
    with _lock:
        return _classes.get(key) or _classes.setdefault(key, _made(base, kind, buffers))


def _made(base: type, kind: type[nn.Module], buffers: tuple[str, ...]) -> type:
    bases: tuple[type, ...] = (_Listed, base) if issubclass(kind, _LISTS) else (base,)
    attributes = {
        "__module__": base.__module__,
        "__doc__": f"A {kind.__module__}.{kind.__qualname__} as a node of a tree.",
        "torch_class": kind,
        "_buffer_names": buffers,
    }
    if issubclass(kind, (nn.ParameterList, nn.ParameterDict)):
        attributes["extra_repr"] = None  # theirs prints the parameters, as the tree does
    cls = type(kind.__name__, bases, attributes)
    ours = [layer for theirs, layer in LIKE_OURS if issubclass(kind, theirs)]
    if issubclass(kind, NORMS):  # whose kernels take 16-bit inputs with statistics of float32
        stays_float32(cls)
    register(cls, Spec(buffers=buffers, riding=(RIDING,)), answers_to=(*kind.__mro__, *ours))
    return cls


#: Modules that keep the same tensors under the same names as a layer of ours, whose rules they follow.
LIKE_OURS = (
    (nn.Linear, Dense),
    (nn.Bilinear, Bilinear),
    (nn.Embedding, Embedding),
    (nn.EmbeddingBag, EmbeddingBag),
    ((nn.Conv1d, nn.Conv2d, nn.Conv3d), Conv),
    ((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), ConvTranspose),
    ((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm), BatchNorm),
    ((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), InstanceNorm),
    (nn.LayerNorm, LayerNorm),
    (nn.RMSNorm, RMSNorm),
    (nn.GroupNorm, GroupNorm),
)

#: Those whose members are modules; they may hold tensors of their own beside them.
_MODULES = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_LISTS = (*_MODULES, nn.ParameterList, nn.ParameterDict)


class _Listed:
    """What nodes have that stand for torch's containers: a length, indices, and a loop over the children."""

    def _children(self) -> dict[str, Any]:
        attributes = vars(self)
        if not issubclass(type(self).torch_class, _MODULES):  # type: ignore[attr-defined]
            return {name: x for name, x in attributes.items() if name not in (RIDING, PIN)}
        return {name: attributes[name] for name in children_of(attributes[RIDING].module)}

    def __len__(self) -> int:
        return len(self._children())

    def __iter__(self) -> Iterator[Any]:
        held = self._children()
        keyed = issubclass(type(self).torch_class, (nn.ModuleDict, nn.ParameterDict))  # type: ignore[attr-defined]
        return iter(held if keyed else held.values())

    def __getitem__(self, key: Any) -> Any:
        held = self._children()
        if isinstance(key, str):
            if key not in held:
                raise KeyError(f"no child {key!r}; there are {', '.join(held) or 'none'}")
            return held[key]
        return tuple(held.values())[key]
