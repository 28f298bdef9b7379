"""The one file that touches the private parts of `torch.nn.Module`.

A module keeps its parameters, buffers and submodules in dicts that its own ``__setattr__`` guards; they
are written directly here, as `torch.func.functional_call` does, so that any tensor may stand for a
parameter. What a call leaves on a module is taken off again afterwards.
"""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from fluxlike._private.dispatch import outside_modes

__all__ = [
    "Contents",
    "CALL",
    "NORMS",
    "buffers_of",
    "children_of",
    "has_hooks",
    "hooked",
    "hooks_of",
    "is_uninitialised",
    "member",
    "no_cache",
    "parameters_of",
    "same_settings",
    "settings_of",
    "stripped_copy",
    "transient_buffers",
]

#: The code that runs the hooks and the forward of every module.
CALL: CodeType = nn.Module._call_impl.__code__

#: The classes that keep running statistics, which their kernels write without declaring it.
NORMS = _NormBase


def parameters_of(module: nn.Module, /) -> dict[str, Tensor | None]:
    """The module's own parameters by name, None where it has none of that name."""
    return module._parameters  # type: ignore[return-value]


def buffers_of(module: nn.Module, /) -> dict[str, Tensor | None]:
    """The module's own buffers by name, None where it has none of that name."""
    return module._buffers


def children_of(module: nn.Module, /) -> dict[str, nn.Module | None]:
    """The modules right below, by name."""
    return module._modules


def is_uninitialised(x: Any, /) -> bool:
    """Whether a parameter or buffer waits for the first call of a lazy module."""
    return is_lazy(x)


_RUN_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_FILE_HOOKS = (
    "_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)  # fmt: skip


def hooks_of(module: nn.Module, /) -> Iterator[Callable[..., Any]]:
    """The functions that were hooked to a module."""
    for name in (*_RUN_HOOKS, *_FILE_HOOKS):
        yield from getattr(module, name, {}).values()


def transient_buffers(module: nn.Module, /) -> set[str]:
    """The names of the buffers that a state dict leaves out."""
    return module._non_persistent_buffers_set


def settings_of(module: nn.Module, /) -> dict[str, Any]:
    """The module's attributes, but for those that every module has."""
    return {name: x for name, x in vars(module).items() if name not in _OF_EVERY_MODULE}


_OF_EVERY_MODULE = vars(nn.Module()).keys()


def same_settings(a: nn.Module, b: nn.Module, same: Callable[[Any, Any], bool], /) -> bool:
    """Whether two modules are of one class, hold things of the same names, and have the same settings.

    Args:
        a: a module.
        b: another one.
        same: whether two settings agree.
    """
    kinds = [parametrize.type_before_parametrizations(m) for m in (a, b)]
    if kinds[0] is not kinds[1]:
        return False
    mine, theirs = vars(a), vars(b)
    if mine.keys() != theirs.keys():
        return False
    for name in _HELD:
        if mine[name].keys() != theirs[name].keys():
            return False
    for name in _RUN_HOOKS:
        hooks = [list(getattr(m, name).values()) for m in (a, b)]
        if len(hooks[0]) != len(hooks[1]) or not all(x is y for x, y in zip(*hooks, strict=True)):
            return False
    others = mine.keys() - _HELD - {*_RUN_HOOKS, *_FILE_HOOKS} - {"training"}
    return all(mine[name] is theirs[name] or same(mine[name], theirs[name]) for name in others)


_HELD = {"_parameters", "_buffers", "_modules"}


def has_hooks(x: Tensor, /) -> bool:
    """Whether something is called with the gradient of a parameter."""
    return bool(x._backward_hooks or getattr(x, "_post_accumulate_grad_hooks", None))


def member(module: nn.Module, name: str, /) -> Tensor | nn.Module | None:
    """The module's own parameter, buffer or module of a name, as fast as that goes; None for none."""
    x: Tensor | None = module._parameters.get(name)
    if x is None:
        x = module._buffers.get(name)
    return module._modules.get(name) if x is None else x


def hooked(module: nn.Module, /) -> bool:
    """Whether a call of the module runs more than its forward."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def stripped_copy(module: nn.Module, stand_in: Callable[[Tensor], Tensor], /) -> nn.Module:
    """A deep copy of a module in which something else stands for its parameters and buffers.

    Hooks are shared, unless they belong to a module of the tree; other tensors among its attributes are
    copied.
    """
    inside = {id(m) for m in module.modules()}
    memo: dict[int, Any] = {}
    kept: list[Any] = []
    for m in module.modules():
        for x in (*parameters_of(m).values(), *buffers_of(m).values()):
            if x is not None and id(x) not in memo:
                memo[id(x)] = stand_in(x)
        for hook in hooks_of(m):
            if id(getattr(hook, "__self__", None)) not in inside:
                memo[id(hook)] = hook
        for x in vars(m).values():
            if isinstance(x, Tensor) and id(x) not in memo and not x.is_leaf:
                memo[id(x)] = x.detach().clone()  # what a hook computed, such as a normalised weight
        kept.append(m)
    with outside_modes():
        return copy.deepcopy(module, memo)


class Contents:
    """What one module holds, to be filled for a call and put back afterwards.

    Its own containers are put back too, and those in them: a forward may append to a list, or hook functions
    to its modules. Objects of other classes are not.

    Attributes:
        attributes: its attributes, among them ``training``.
        parameters: its parameters by name.
        buffers: its buffers by name.
        modules: the modules right below, by name.
        tensors: its attributes that are tensors, and neither parameters nor buffers.
    """

    __slots__ = ("_before", "_containers", "attributes", "buffers", "modules", "parameters", "tensors")

    def __init__(self, module: nn.Module) -> None:
        self.attributes = module.__dict__
        self.parameters, self.buffers = parameters_of(module), buffers_of(module)
        self.modules = children_of(module)
        held: tuple[dict[str, Any], ...] = (
            self.attributes, self.parameters, self.buffers, self.modules
        )  # fmt: skip
        self._before = tuple((d, dict(d)) for d in held)
        self.tensors = {name: x for name, x in self.attributes.items() if isinstance(x, Tensor)}
        self._containers: list[tuple[Any, Any]] = []
        known = {id(d) for d in held}
        for x in self.attributes.values():
            self._note(x, known)

    def _note(self, x: Any, known: set[int]) -> None:
        """Remember what a container holds, and the containers in it."""
        if type(x) not in _CONTAINERS or id(x) in known:
            return
        known.add(id(x))
        self._containers.append((x, copy.copy(x)))
        for inner in x.values() if isinstance(x, dict) else x:
            self._note(inner, known)

    def tidy(self) -> None:
        """Take off what a forward left, but for the tensors and the mode, which may be needed again."""
        now, before = self._before[0]
        training = now["training"]
        now.clear()
        now.update(before)
        now["training"] = training
        for held, had in self._before[1:]:
            if len(held) > len(had):  # such as a module that was set as an attribute
                for name in held.keys() - had.keys():
                    del held[name]
        for container, was in self._containers:
            if container or was:
                container.clear()
                (container.update if isinstance(container, (dict, set)) else container.extend)(was)

    def empty(self) -> None:
        """Make the module what it was."""
        for now, before in self._before:
            now.clear()
            now.update(before)


_CONTAINERS = (dict, OrderedDict, defaultdict, list, set, deque)


@contextmanager
def no_cache() -> Iterator[None]:
    """Keep ``parametrize.cached()`` apart from other calls of the same modules, which have other tensors."""
    if not parametrize._cache_enabled:
        yield
        return
    outer, parametrize._cache = parametrize._cache, {}
    try:
        yield
    finally:
        parametrize._cache = outer
