"""One call of a node: its tensors go into a module, the module runs, and what it wrote comes out.

The forward gets copies that are made when it writes to them. So a buffer that it wrote is known, and comes
back as assigned; a parameter that it wrote is an error; and the node's own tensors stay as they are.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from fluxlike._private import levels, tracing
from fluxlike._private.lazy_clone import is_shared, lazy_clone, shared_until_written, was_written
from fluxlike._private.modules import NORMS, no_cache
from fluxlike.bridges.torch_modules.classes import RIDING
from fluxlike.bridges.torch_modules.skeleton import Skeleton, Slot
from fluxlike.scope import example
from fluxlike.scope.assigned import assign, current, is_held
from fluxlike.scope.mode import training
from fluxlike.transforms.engine.motors import derived_again
from fluxlike.transforms.listening import overheard
from fluxlike.trees.nodes import PIN
from fluxlike.trees.structure import flatten

__all__ = ["Run", "Stand", "same_leaves"]


class _Given(NamedTuple):
    """A tensor of a node, and what the forward got for it."""

    slot: Slot
    name: str
    origin: Tensor
    start: Tensor  # its newest value
    given: Tensor
    version: int


class Run:
    """One call of a node: ``with Run(node) as run:`` puts the node's tensors into ``run.module``.

    Attributes:
        node: the node.
        nodes: the nodes by the ids of the modules that run for them.
        kept: whether something holds a module after the call.
    """

    def __init__(self, node: Any, *, method: str = "") -> None:
        self.node, self._method = node, method
        self.nodes: dict[int, Any] = {}
        self.kept = False
        self._slots: list[tuple[Skeleton, Slot]] = []
        self._counts: list[list[int]] = []
        self._buffers: list[_Given] = []
        self._parameters: list[_Given] = []
        self._known: dict[int, tuple[Tensor, Tensor, int]] = {}
        self._filled: dict[int, Any] = {}
        self._settings: list[tuple[Slot, dict[str, Any], dict[str, Any]]] = []
        self._training, self._alone = training(), example.alone()
        self._plain = tracing.concrete()
        self._around = ExitStack()
        self._statistics: set[int] = set()

    @property
    def module(self) -> nn.Module:
        """The module that runs."""
        return self._slots[0][1].module

    def __enter__(self) -> Run:
        skeleton = getattr(self.node, RIDING)
        slot = skeleton.take()
        self._slots.append((skeleton, slot))
        try:
            self._fill(slot, self.node)
            if slot.sets_modes:
                self._set_modes(slot)
        except BaseException:
            self.close()
            raise
        self._counts = [slot.references() for _, slot in self._slots]
        self._around.enter_context(no_cache())
        if not self._plain:
            self._around.enter_context(_Noting(self._statistics))
        if derived_again():  # the fused kernels of attention have one derivative, in reverse mode
            self._around.enter_context(sdpa_kernel(SDPBackend.MATH))
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        try:
            self._around.close()
            if error is None:
                self._require_unchanged()
                self._assign()
        finally:
            self.close()

    def close(self) -> None:
        """Give the modules back."""
        while self._slots:
            skeleton, slot = self._slots.pop()
            self.kept |= not skeleton.give_back(slot, self._counts.pop() if self._counts else [])

    def _fill(self, slot: Slot, node: Any) -> None:
        """Put the tensors and the modes of a node, and of those below, into a copy of its module."""
        attributes: dict[str, Any] = node.__dict__
        contents = slot.contents
        self.nodes[id(slot.module)] = node
        pin = attributes.get(PIN)
        contents.attributes["training"] = self._training if pin is None else pin == "train"
        if self._alone and contents.attributes["training"] and isinstance(slot.module, NORMS):
            raise ValueError(f"{type(slot.module).__name__} is in train mode; {example.NO_BATCH}")
        for name, frozen in slot.parameters:
            x = attributes[name]
            contents.parameters[name] = self._parameter(slot, name, x, frozen) if isinstance(x, Tensor) else x
        for name in contents.buffers:
            x = attributes[name]
            contents.buffers[name] = self._buffer(slot, name, x) if isinstance(x, Tensor) else x
        if self._plain:
            for name, x in contents.tensors.items():
                contents.attributes[name] = lazy_clone(x)
        for name, child in slot.children:
            contents.modules[name] = self._module(child, attributes[name], name)
        forward = overheard(node)
        if forward is not None and node is not self.node:
            contents.attributes["forward"] = forward(slot.module.forward)
        if self._method:
            settings = {n: x for n, x in contents.attributes.items() if type(x) in _PLAIN}
            self._settings.append((slot, dict(contents.modules), settings))

    def _set_modes(self, slot: Slot) -> None:
        """Let modules that say it themselves, by a `train` of their own, set the modes; pins stay."""
        slot.module.train(self._training)
        for module in slot.module.modules():
            pin = getattr(self.nodes.get(id(module)), "__dict__", {}).get(PIN)
            if pin is not None:
                module.__dict__["training"] = pin == "train"

    def _module(self, slot: Slot, node: Any, name: str) -> nn.Module | None:
        """The module to call for a child: the one that was there, or what surgery put in its place."""
        if getattr(node, "__dict__", {}).get(RIDING) is not slot.skeleton:
            return self._other(node, name)
        before = self._filled.setdefault(id(slot.module), node)
        if before is not node:  # a module at two places, whose nodes may have parted
            return slot.module if same_leaves(before, node) else self._other(node, name)
        self._fill(slot, node)
        return slot.module

    def _other(self, node: Any, name: str) -> nn.Module | None:
        if node is None:
            return None
        skeleton = getattr(node, "__dict__", {}).get(RIDING)
        if skeleton is None:
            if not callable(node) or isinstance(node, type):
                raise TypeError(f"the module {name!r} was replaced by {node!r}, which can't be called")
            stand = Stand(node)
            self.nodes[id(stand)] = node
            return stand
        slot = skeleton.take()
        self._slots.append((skeleton, slot))
        self._fill(slot, node)
        return slot.module

    def _parameter(self, slot: Slot, name: str, x: Tensor, frozen: bool) -> Tensor:
        """What the forward gets for a parameter.

        One that torch does not train may be written, as MoCo's slow encoder is.
        """
        if frozen and self._plain:
            return self._buffer(slot, name, x)
        known = self._known.get(id(x))
        if known is None:
            # torch's fused recurrent kernels would take a copy of shared memory, and write to none.
            copy = None if slot.recurrent or not self._plain else shared_until_written(x)
            known = self._known[id(x)] = (x, x, _version(x)) if copy is None else (x, copy, 0)
        self._parameters.append(_Given(slot, name, x, *known))
        return known[1]

    def _buffer(self, slot: Slot, name: str, x: Tensor) -> Tensor:
        """A copy of a buffer for the forward."""
        known = self._known.get(id(x))
        if known is None:
            start = current(x)
            copy = lazy_clone(start) if self._plain else start.detach().clone()
            known = self._known[id(x)] = start, copy, 0
        self._buffers.append(_Given(slot, name, x, *known))
        return known[1]

    def _require_unchanged(self) -> None:
        """Refuse a parameter that was written, and what a method changed on a module."""
        for one in self._parameters:
            if one.slot.contents.parameters.get(one.name) is not one.given or _changed(one):
                _refuse(f"the parameter {one.name!r}", one.slot)
        for slot, modules, settings in self._settings:
            for name in {**modules, **slot.contents.modules}:
                if slot.contents.modules.get(name) is not modules.get(name):
                    _refuse(f"the module {name!r}", slot)
            for name, x in settings.items():
                if name != "training" and slot.contents.attributes.get(name) != x:
                    _refuse(f"the attribute {name!r}", slot)

    def _assign(self) -> None:
        """Assign the buffers that were written."""
        told: set[int] = set()
        for one in self._buffers:
            if not one.slot.module.training or id(one.origin) in told or not is_held(one.origin):
                continue
            contents = one.slot.contents
            new = contents.buffers.get(one.name, contents.parameters.get(one.name))
            if new is None or (new is one.given and not self._was_written(one)):
                continue
            told.add(id(one.origin))
            if new.shape == one.origin.shape:
                assign(one.origin, new)
                continue
            warnings.warn(
                f"the forward of {type(one.slot.module).__name__} changed the shape of its buffer "
                f"{one.name!r} from {tuple(one.origin.shape)} to {tuple(new.shape)}; a buffer keeps its "
                "shape, so the change is not kept",
                stacklevel=4,
            )

    def _was_written(self, one: _Given) -> bool:
        written = was_written(one.given)
        if written is not None:
            return written
        if self._plain and not one.given.is_meta and one.given.layout is torch.strided:
            return not _equal(one.given, one.start)
        return id(one.given) in self._statistics


def _changed(one: _Given) -> bool:
    """Whether the forward wrote to a parameter: to its copy, where it got one."""
    if one.given is one.origin:
        return _version(one.given) != one.version
    return not is_shared(one.given) and not _equal(one.given.detach(), one.start.detach())


def _version(x: Tensor) -> int:
    """How often a tensor was written to, as far as that was declared: below all transforms."""
    x = levels.outside(x, 0)
    return 0 if x.is_inference() else x._version


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same numbers, NaN among them."""
    return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())


def _refuse(what: str, slot: Slot) -> NoReturn:
    raise RuntimeError(
        f"the call changes {what} of a {type(slot.module).__name__}, and a tree is never changed in place; "
        "change the module before from_torch, or make a new tree with fluxlike.at, fluxlike.reinit or "
        "fluxlike.update"
    )


_PLAIN = (type(None), bool, int, float, str)


class _Noting(TorchFunctionMode):
    """Notes the running statistics that a kernel writes without declaring it, where no copy can tell."""

    def __init__(self, noted: set[int]) -> None:
        super().__init__()
        self._noted = noted

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _KEEP_STATISTICS:
            self._noted.update(map(id, (*args, *(kwargs or {}).values())))
        return func(*args, **(kwargs or {}))


_KEEP_STATISTICS = (F.batch_norm, F.instance_norm, torch.batch_norm, torch.instance_norm)


def same_leaves(a: Any, b: Any, /) -> bool:
    """Whether two nodes hold the same tensors and constants, themselves."""
    mine, theirs = flatten(a)[0], flatten(b)[0]
    return len(mine) == len(theirs) and all(x is y for x, y in zip(mine, theirs, strict=True))


class Stand(nn.Module):
    """What is called where a module was replaced by a layer of ours, or by any callable."""

    def __init__(self, layer: Callable[..., Any]) -> None:
        super().__init__()
        self.__dict__["_layer"] = layer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._layer(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_layer"], name)
