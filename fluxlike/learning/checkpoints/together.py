"""Checkpoints of models over a mesh: every rank takes part, and the first one writes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from fluxlike.placement.mesh import used
from fluxlike.trees.leaves import Assigned
from fluxlike.trees.structure import flatten

__all__ = ["gathered", "on_first", "over_mesh"]


def over_mesh(tree: Any, /) -> bool:
    """Whether a tree has tensors over a mesh."""
    mesh = used.mesh()
    return mesh is not None and any(mesh.over(_tensor(x)) for x in flatten(tree)[0])


def gathered(tree: Any, /) -> Any:
    """A tree over a mesh as a plain one in the main memory of the first rank, and on others without tensors.

    Every rank calls it; tensors travel one at a time.
    """
    from fluxlike.placement.mesh import ranks  # which imports torch.distributed

    mesh = used.mesh()
    assert mesh is not None
    leaves, treedef = flatten(tree)
    new: dict[int, Any] = {}
    first = ranks.number() == 0
    for i, x in enumerate(leaves):
        if isinstance(_tensor(x), Tensor):
            if id(x) not in new:
                whole = mesh.whole(_tensor(x).detach()).cpu()
                new[id(x)] = None if not first else Assigned(whole) if isinstance(x, Assigned) else whole
            leaves[i] = new[id(x)]
    return treedef.unflatten(leaves)


def on_first(over: bool, work: Callable[[], object], /) -> None:
    """Do it on the first rank where a model is over a mesh, while the others wait; and here where it is not.

    Raises:
        Exception: what it raised, on every rank.
    """
    if over:
        from fluxlike.placement.mesh import ranks  # which imports torch.distributed

        ranks.alone(work)
    else:
        work()


def _tensor(x: Any) -> Any:
    return x.value if isinstance(x, Assigned) else x
