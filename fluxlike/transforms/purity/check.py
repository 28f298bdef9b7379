"""`check_pure`: what a function changes, draws or sets beside returning a value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fluxlike._private import tracing
from fluxlike.transforms.purity import settings
from fluxlike.transforms.purity.copies import Copies
from fluxlike.transforms.purity.randomness import RandomStates
from fluxlike.transforms.purity.variables import Variables
from fluxlike.transforms.purity.watch import Watch
from fluxlike.transforms.purity.watched import Watched
from fluxlike.trees.paths import is_node

__all__ = ["Purity", "check_pure"]


@dataclass(frozen=True)
class Purity:
    """What `check_pure` found; true where it found nothing.

    Attributes:
        changed: from each place that was changed, such as ``".weight of argument 0"``, to the
            operations that did it.
        draws: the operations that drew without a key.
        settings: from each global setting left changed to its values before and after.
    """

    changed: Mapping[str, tuple[str, ...]]
    draws: tuple[str, ...]
    settings: Mapping[str, tuple[Any, Any]]

    def __bool__(self) -> bool:
        return not (self.changed or self.draws or self.settings)

    def __repr__(self) -> str:
        if self:
            return "pure"
        lines = [f"{place} was changed by {', '.join(by)}" for place, by in self.changed.items()]
        if self.changed:
            lines.append("(compute new values and return them; a layer moves a buffer by fluxlike.assign)")
        lines += [f"{operation} drew without a key" for operation in self.draws]
        if self.draws:
            lines.append("(call it in `with fluxlike.seeded(key):`)")
        lines += [f"the {name} went from {old} to {new}" for name, (old, new) in self.settings.items()]
        if self.settings:
            lines.append("(set it by `with`, which sets it back)")
        return "impure:\n  " + "\n  ".join(lines)


def check_pure(f: Callable[..., Any], /, *args: Any) -> Purity:
    """Run ``f(*args)`` once and report all that it does beside returning a value.

    `f` gets copies of its arguments, with their ties and their views of each other, and so does a
    model in the place of `f`. Afterwards random states, settings, and the tensors that `f` reached
    in another way are put back; what it set outside of its arguments, such as ``self.model``, stays set.
    Contents are compared before and after every operation, since some kernels write without declaring it:
    it is slow, for tests and debugging.

    What was changed is a tensor, by an operation or behind torch's back (by numpy, by ``.data``); a
    numpy array or a generator; an attribute or an entry that was set; or a ``.grad`` that was filled.
    Of what `f` closes over, tensors are watched, and the variables that it names: whether another object
    stands there (by ``global``, ``nonlocal``), and the attributes and entries of a tree. So are those of the
    functions of its file that it calls by name. Of an object that is no node, such as the `self` of a
    method, its own attributes are compared, and nothing further in.

    Args:
        f: a function, or a model.
        args: what to call it with.

    Returns:
        A `Purity`: true for a pure function, and printed line by line for another.

    Raises:
        TypeError: `f` can't be called.
        RuntimeError: called inside a transform. Whatever `f` raises comes through.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.check_pure(lambda m, x: m["w"] * x, {"w": torch.ones(2)}, torch.ones(2))
        pure
        >>> def careless(m, x):
        ...     m["w"].mul_(0.9)
        ...     return torch.nn.functional.dropout(m["w"] * x)
        >>> fl.check_pure(careless, {"w": torch.ones(2)}, torch.ones(2))
        impure:
          ['w'] of argument 0 was changed by torch.Tensor.mul_
          (compute new values and return them; a layer moves a buffer by fluxlike.assign)
          torch.nn.functional.dropout drew without a key
          (call it in `with fluxlike.seeded(key):`)
    """
    if not callable(f):
        raise TypeError(
            f"check_pure takes a function and its arguments, found {type(f).__name__} as the function"
        )
    if not tracing.concrete():
        raise RuntimeError(
            "check_pure looks at the contents of tensors, which have none inside a transform; call it "
            "outside, on the function with the transform in it"
        )
    before = settings.read()
    copies = Copies()
    watched = [Watched.copied(x, f"argument {i}", copies) for i, x in enumerate(args)]
    function = Watched.copied(f, "the function", copies) if is_node(f) else None
    closed = Watched.closed_over(f)
    trees = [*watched, *([function] if function else []), *closed]
    draws = RandomStates()
    variables = Variables(f, args)
    watch = Watch(trees, draws)
    try:
        with watch:
            (function.tree if function else f)(*(w.tree for w in watched))
        draws.finish()
        after = settings.read()
        changed = watch.finish()
        for place in variables.assigned():
            changed.setdefault(place, ("setting it",))
    finally:
        draws.restore()
        settings.restore(before)
        watch.restore()
    moved = {name: (old, after[name]) for name, old in before.items() if after[name] != old}
    return Purity(changed, tuple(draws.operations), moved)
