"""`TorchModule`: the node of a tree that stands for a torch module and runs its forward."""

from __future__ import annotations

from types import FrameType, FunctionType, MethodType, TracebackType
from typing import Any

from torch import nn

from fluxlike._private.modules import CALL, transient_buffers
from fluxlike._private.pytree import tensors_in
from fluxlike.advice import OF_MODULES
from fluxlike.bridges.torch_modules.classes import RIDING, class_for
from fluxlike.bridges.torch_modules.run import Run
from fluxlike.bridges.torch_modules.skeleton import Skeleton
from fluxlike.layers.errors import fail
from fluxlike.placement.mesh.entries import is_entry
from fluxlike.trees.functor import leaf
from fluxlike.trees.nodes import PIN
from fluxlike.trees.paths import children
from fluxlike.trees.records import may_lack
from fluxlike.trees.structure import flatten

__all__ = ["TorchModule"]


class TorchModule:
    """A torch module as a node of a tree, as `from_torch` makes it.

    Its attributes are the parameters, buffers and submodules of the module under their own names, so
    ``model.layer1[0].conv1.weight`` is where torch has it. A call runs the module's own forward with these
    tensors; the mode follows the scope, and buffers that the forward writes come back as `Assigned`.
    Other methods of the module can be called too, and its other attributes read.

    Attributes:
        torch_class: the class of the module.

    Raises:
        LayerError: from a call: a module inside failed. It names its path and what it got.
        RuntimeError: from a call: it writes a parameter, or a method changes the module.
        AttributeError: there is no such attribute, it changes a module in place, or one is to be set; it says
            what to write.

    Example:
        >>> import torch, fluxlike as fl
        >>> model = fl.from_torch(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Tanh()))
        >>> isinstance(model, fl.TorchModule), type(model[0]).__name__, model[0].torch_class
        (True, 'Linear', <class 'torch.nn.modules.linear.Linear'>)
        >>> model[0].in_features
        3
    """

    torch_class: type[nn.Module]
    _buffer_names: tuple[str, ...]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        run = Run(self)
        try:
            with run:
                out = run.module(*args, **kwargs)
            if run.kept:
                _refuse_reentrant(out)
            return out
        except Exception as error:
            _explain(self, run, error)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in (PIN, RIDING):
            raise AttributeError(name)
        own = type(self).__name__
        if name in OF_MODULES:
            raise AttributeError(f"{own} is a node of a tree and has no {name!r}: {OF_MODULES[name]}")
        module = getattr(self, RIDING).module
        if name in _METHODS or (name.endswith("_") and callable(getattr(type(module), name, None))):
            raise AttributeError(
                f"{own} is a node of a tree and has no {name!r}, which changes or looks through a module in "
                "place; call it on the module before from_torch, or write fluxlike.at, fmap or trainables"
            )
        _require_attribute(module, name)
        if name in vars(module) and type(vars(module)[name]) in _PLAIN:
            return vars(module)[name]
        if isinstance(getattr(type(module), name, None), FunctionType) and name not in vars(module):
            return _Method(self, name)
        run = Run(self, method=name)
        with run:
            found = getattr(run.module, name)
            if isinstance(found, MethodType) and found.__self__ is run.module:
                return _Method(self, name)
            return run.nodes.get(id(found), found) if isinstance(found, nn.Module) else found

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(
            f"{type(self).__name__} is a node of a tree, which is never changed in place; write "
            f"model = fluxlike.at(model, lambda m: m.{name}).set(…)"
        )

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is a node of a tree, which is never changed in place")

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *dir(getattr(self, RIDING).module)} - {*OF_MODULES, *_METHODS})

    def __reduce__(self) -> tuple[Any, ...]:
        names = tuple(name for name in vars(self) if name not in (RIDING, PIN))
        kind = type(self)
        return _unpickled, (kind.torch_class, names, kind._buffer_names, vars(self))

    def extra_repr(self) -> str:
        """The arguments of the module in print."""
        skeleton: Skeleton = getattr(self, RIDING)
        return skeleton.module.extra_repr()


#: The methods that every module has, but for those that only read.
_METHODS = {name for name, x in vars(nn.Module).items() if callable(x) and not name.startswith("_")} - {
    "extra_repr",
    "forward",
}
_PLAIN = (type(None), bool, int, float, str)


def _require_attribute(module: nn.Module, name: str) -> None:
    """Raise where neither the module nor its class can have an attribute, before any tensor is put in it."""
    kind: Any = type(module)
    if kind.__getattr__ is nn.Module.__getattr__ and not hasattr(kind, name) and not hasattr(module, name):
        raise AttributeError(f"{kind.__name__} has no attribute {name!r}")


def _unpickled(
    kind: type[nn.Module], names: tuple[str, ...], buffers: tuple[str, ...], attributes: dict[str, Any]
) -> TorchModule:
    node: TorchModule = object.__new__(class_for(TorchModule, kind, names, buffers))
    node.__dict__.update(attributes)
    return node


@leaf
class _Method:
    """A method of a torch module, to be run with the tensors of a node."""

    def __init__(self, node: TorchModule, name: str) -> None:
        self.__self__, self.__name__ = node, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        run = Run(self.__self__, method=self.__name__)
        try:
            with run:
                out = getattr(run.module, self.__name__)(*args, **kwargs)
            if run.kept:
                _refuse_reentrant(out)
            return out
        except Exception as error:
            _explain(self.__self__, run, error)

    def __repr__(self) -> str:
        return f"<the method {self.__name__} of a {type(self.__self__).__name__}>"


def _refuse_reentrant(out: Any) -> None:
    """Refuse torch's older checkpoint, which adds to ``.grad`` and gives no gradients to return."""
    queue = [x.grad_fn for x in tensors_in(out) if x.grad_fn is not None]
    seen = set(queue)
    while queue:
        step = queue.pop()
        if step.name() == "CheckpointFunctionBackward":
            raise ValueError(
                "the module computes a part again by torch.utils.checkpoint with use_reentrant=True, through "
                "which no gradient can be returned; write use_reentrant=False (in transformers: "
                "module.gradient_checkpointing_enable({'use_reentrant': False}) before from_torch)"
            )
        new = {inner for inner, _ in step.next_functions if inner is not None} - seen
        seen |= new
        queue.extend(new)


def _explain(node: TorchModule, run: Run, error: Exception) -> Any:
    """Raise an error of the forward again, with the path of the module inside that failed."""
    if any(map(is_entry, flatten(node, is_entry)[0])):
        raise TypeError(
            f"this {type(node).__name__} is the state of an optimiser, not the module: update returns "
            "(model, state), in this order; write model, state = update(state, model, grads)"
        ) from error
    found = _innermost(error.__traceback__, run)
    if found is None:
        raise error.with_traceback(error.__traceback__ and error.__traceback__.tb_next)
    inner, args = found
    fail(_path_to(node, inner), inner, args, error)


def _innermost(traceback: TracebackType | None, run: Run) -> tuple[Any, tuple[Any, ...]] | None:
    """The node of the last module that was called below the node itself, and what it got."""
    found = None
    while traceback is not None:
        frame: FrameType = traceback.tb_frame
        if frame.f_code is CALL:
            node = run.nodes.get(id(frame.f_locals.get("self")))
            if node is not None and node is not run.node:
                found = node, tuple(frame.f_locals.get("args", ()))
        traceback = traceback.tb_next
    return found


def _path_to(node: Any, wanted: Any) -> str:
    for step, child in children(node):
        if child is wanted:
            return step.text
        below = _path_to(child, wanted)
        if below:
            return step.text + below
    return ""


may_lack(TorchModule, lambda node: transient_buffers(getattr(node, RIDING).module))
