"""`TreeModule`: an `nn.Module` for a node of a tree, with a submodule for each node below."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Sequence
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from fluxlike._private.compiling import become_operation, run_while_compiling
from fluxlike._private.modules import buffers_of, hooked, parameters_of
from fluxlike.bridges.torch_modules.tree_layout import MODULE, Kind, Layout, Slot, at, inner_names, name_of
from fluxlike.scope import assigned, mode
from fluxlike.transforms.engine.motors import at_depth, enclosed
from fluxlike.trees.functor import PIN, spec_of
from fluxlike.trees.paths import children, is_node
from fluxlike.trees.show import tree_repr
from fluxlike.trees.structure import flatten

__all__ = ["TreeModule", "class_for"]


class TreeModule(nn.Module):
    """A model, or a part of one, as an `nn.Module`: what `to_torch` returns.

    Its parameters, buffers and submodules have the names of the model's attributes, keys and indices. A call
    puts the tensors that the module has now into the tree, and calls that.

    In train mode the layers train, in eval mode they test, each part by its own ``training``: after
    ``module.layers[1].eval()`` that layer tests. A part that the model pinned by `trainmode` or `testmode`
    keeps its mode, and ``with fl.mode(…)`` beats the modules' modes. Buffers that a layer assigns are written
    in place once the call has succeeded, as torch's BatchNorm writes its own.

    A part is a module too and can be called by itself. One with hooks, or put in by torch's kind of surgery
    (``module.layers[1] = nn.Linear(…)`` by ``setattr``), is called as a module; of the others the model calls
    its own layers.

    torch.compile takes the whole call as one graph. It keeps to the modules' modes: ``fl.mode`` and
    ``fl.seeded`` around a compiled call are those of its first.
    """

    def __init__(self, bare: Any) -> None:
        super().__init__()
        self._bare = bare  # the node, with a Slot for every tensor
        self._inner = inner_names(bare)
        self._layouts: dict[Any, Layout] = {}
        slots = [x for x in flatten(bare)[0] if isinstance(x, Slot)]
        self._ties = len(set(slots)) < len(slots)
        self.register_load_state_dict_post_hook(_tie_again)
        self.train()

    def tree(self) -> Any:
        """The model with the values that the module has now.

        Returns:
            A tree of the classes, constants, ties and pinned modes that `to_torch` was given, with copies of
            the tensors, which training on does not change.

        Raises:
            AttributeError: a part was replaced by a module that lacks a tensor which the model has there.

        Example:
            >>> import torch, fluxlike as fl
            >>> module = fl.to_torch(fl.Dense(2, 1))
            >>> _ = torch.nn.init.ones_(module.weight)
            >>> module.tree().weight
            tensor([[1., 1.]])
        """
        layout = Layout(self._bare)
        with torch.inference_mode(False):
            return layout.fill([x.detach().clone() for x in layout.tensors([self])])

    def train(self, mode: bool = True) -> TreeModule:
        """Set train mode, or eval mode, here and below; what the model has pinned keeps its mode.

        Args:
            mode: whether to train. (default: True)

        Returns:
            The module itself.
        """
        super().train(mode)
        pin = getattr(self._bare, PIN, None)
        if pin is not None:
            self.training = pin == "train"
        return self

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if torch.compiler.is_dynamo_compiling():
            return self._run_compiled(args, kwargs)
        layout, parts = self._layout()
        return _call(layout, self.training, layout.tensors(parts), args, kwargs, parts)

    def _run_compiled(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        parts, key = self._parts()
        number = _prepare(self, key)
        layout = self._layouts[key]
        if layout.holds_modules:  # which are compiled one by one
            return _call(layout, self.training, layout.tensors(parts), args, kwargs, parts)
        return _compiled(number, self.training, layout.tensors(parts), args, kwargs)

    def _layout(self) -> tuple[Layout, list[nn.Module]]:
        """How to put the tree together, and the modules that its tensors come from."""
        parts, key = self._parts()
        return self._layouts.get(key) or self._new_layout(key), parts

    def _parts(self) -> tuple[list[nn.Module], tuple[Any, ...]]:
        """The modules of the tree, and what its layout depends on: the mode and how each stands there."""
        parts: list[nn.Module] = [self]
        kinds: list[Kind] = [None]
        self._collect(self.training, parts, kinds)
        return parts, (self.training, *kinds)

    def _new_layout(self, key: tuple[Any, ...]) -> Layout:
        training, *below = key
        layout = Layout(self._bare, below, trains=training or "train" in below)
        return self._layouts.setdefault(key, layout)

    def _collect(self, training: bool, parts: list[nn.Module], kinds: list[Kind]) -> None:
        """Note the modules below, in the order of the tree, and how each stands in it."""
        for name in self._inner:
            part = at(self, name)
            parts.append(part)
            if not isinstance(part, TreeModule) or (hooked(part) and callable(part._bare)):
                kinds.append(MODULE)
            else:
                kinds.append(None if part.training is training else "train" if part.training else "test")
                part._collect(training, parts, kinds)

    def _tie(self) -> None:
        """Put the tensor at the first place of a tie at all of them."""
        for (_, first), *others in Layout(self._bare).places if self._ties else ():
            held = _held(self, first)
            for other in [_held(self, name) for _, name in others]:
                if held is not None and other is not None:
                    other[0][other[1]] = held[0][held[1]]

    def _apply(self, fn: Any, recurse: bool = True) -> TreeModule:
        super()._apply(fn, recurse)  # which makes a new tensor for each place of a buffer
        self._tie()
        return self

    def __repr__(self) -> str:
        layout, parts = self._layout()
        if layout.holds_modules:
            return super().__repr__()
        *above, last = tree_repr(layout.fill(layout.tensors(parts))).split("\n")
        code, mark, comment = last.partition("  #")
        last = (code.rstrip() + ")").ljust(len(code)) + mark + comment
        return "to_torch(" + "\n".join([*above, last])

    def _get_name(self) -> str:
        return type(self._bare).__name__

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_layouts": {}}

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _empty, (type(self._bare),), self.__getstate__()


class TreeItems(TreeModule):
    """The module of a container, such as the tuple of a Chain's layers: its items by index or key."""

    def __getitem__(self, key: Any) -> Any:
        items = dict(self._items())
        if isinstance(self._bare, (tuple, list)):
            values = list(items.values())
            return tuple(values[key]) if isinstance(key, slice) else values[key]
        return items[key]

    def __len__(self) -> int:
        return len(list(self._items()))

    def __iter__(self) -> Iterator[Any]:
        items = self._items()
        return (entry if isinstance(self._bare, dict) else item for entry, item in items)

    def _items(self) -> Iterator[tuple[Any, Any]]:
        for step, child in children(self._bare):
            inside = isinstance(child, Slot) or is_node(child)
            yield step.entry, at(self, name_of(step)) if inside else child


def _call(
    layout: Layout,
    training: bool,
    tensors: Sequence[Tensor],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    parts: Sequence[nn.Module] = (),
) -> Any:
    """Call the tree of these tensors, and write to them what its layers assign."""
    differentiable = torch.is_grad_enabled()
    given = list(tensors)
    if differentiable:
        for k in layout.moving():
            given[k] = given[k].clone()  # what autograd keeps must not be written to
    frame = assigned.Frame([given[k] for k in layout.buffers], [given[k] for k in layout.parameters])
    model = layout.fill(given, parts)
    frame_token = assigned.enter(frame)
    mode_token = mode.ambient("train" if training else "test")
    try:
        if differentiable and not enclosed():
            with at_depth(1):  # whoever trains the module differentiates the gradients inside
                out = model(*args, **kwargs)
        else:
            out = model(*args, **kwargs)
    finally:
        mode.restore(mode_token)
        assigned.leave(frame_token)
    moved = [k for k in layout.buffers if id(given[k]) in frame.values]
    for k in moved:
        tensors[k].detach().copy_(frame.values[id(given[k])])
    layout.note_moved(moved)
    return out


@run_while_compiling
def _prepare(module: TreeModule, key: tuple[Any, ...]) -> int:
    """The number of a layout, made where it is missing."""
    become_operation(_compiled)
    layout = module._layouts.get(key) or module._new_layout(key)
    _numbered[layout.number] = layout
    return layout.number


_numbered: WeakValueDictionary[int, Layout] = WeakValueDictionary()


def _compiled(
    number: int, training: bool, tensors: list[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """`_call` as one operation of torch.compile, which can't follow it but traces what it does on tensors."""
    return _call(_numbered[number], training, tensors, args, kwargs)


def _held(module: Any, name: str) -> tuple[dict[str, Tensor | None], str] | None:
    """Where a module holds a tensor, None where it holds none of that name."""
    *above, last = name.split(".")
    for part in above:
        module = getattr(module, part, None)
    if not isinstance(module, nn.Module):
        return None
    return next(((held, last) for held in (parameters_of(module), buffers_of(module)) if last in held), None)


def _tie_again(module: TreeModule, incompatible: Any) -> None:
    """After ``load_state_dict(…, assign=True)``, which gives each place of a tie a tensor of its own."""
    module._tie()


@functools.cache
def class_for(kind: type, /) -> type[TreeModule]:
    """The class of the modules of nodes of one class: its ``forward`` has the signature of their calls."""
    base = TreeModule if spec_of(kind) is not None else TreeItems
    call = getattr(kind, "__call__", None)  # noqa: B004 (of the objects, not of the class)
    if not inspect.isfunction(call):
        return base

    def forward(self: TreeModule, *args: Any, **kwargs: Any) -> Any:
        return self._run(args, kwargs)

    forward.__signature__ = inspect.signature(call)  # type: ignore[attr-defined]
    return type(base.__name__, (base,), {"forward": forward, "__module__": __name__, "__doc__": base.__doc__})


def _empty(kind: type) -> TreeModule:
    return object.__new__(class_for(kind))
