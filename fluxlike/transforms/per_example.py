"""`per_example_gradient`: the gradient of every example of a batch, by `vmap` of `gradient`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from fluxlike._private import functorch
from fluxlike.placement.mesh import used
from fluxlike.scope import example
from fluxlike.scope.key import Key
from fluxlike.scope.seeded import seeded
from fluxlike.transforms.engine.argument import argument_numbers
from fluxlike.transforms.engine.function import require_function
from fluxlike.transforms.gradient import gradient
from fluxlike.transforms.vmap import vmap
from fluxlike.trees.fmap import fmap
from fluxlike.trees.leaves import Assigned
from fluxlike.trees.places import Where
from fluxlike.trees.structure import flatten, structure_of

__all__ = ["per_example_gradient"]


def per_example_gradient(
    f: Callable[..., Any],
    /,
    *args: Any,
    argnums: int | Sequence[int] = 0,
    wrt: Where | tuple[Where, ...] | None = None,
    key: Key | None = None,
    chunk_size: int | None = None,
) -> Any:
    """The gradient of ``f(model, x[i:i+1], y[i:i+1])`` for every example i, all at once.

    `f` gets the model and a batch of one, so the loss of a training step will do. Clipping each
    example's gradient, or its norm, is what differential privacy and gradient-noise scales need. Modes are
    those of `gradient`; a dropout draws for each example. Over a mesh, each rank has the gradients of its own
    examples.

    Args:
        f: as in `gradient`.
        args: as in `gradient`. Those that are not differentiated are batches: every tensor in them has
            the examples on its first axis. Constants go through unchanged; what the examples share, such
            as a teacher, `f` closes over.
        argnums: as in `gradient`. (default: 0)
        wrt: as in `gradient`. (default: the whole argument)
        key: what example i draws from, folded by i. (default: the key in scope, else torch's generator)
        chunk_size: the number of examples at once, to save memory. (default: all)

    Returns:
        As `gradient`, with a new first axis on every tensor: one gradient an example. None where no
        example reaches a parameter. A buffer that a layer moves by its weights alone is `Assigned`, as in
        `gradient`, without the axis.

    Raises:
        ValueError: as `gradient`; or there is no example, or their numbers differ; or a layer that
            mixes the examples of a batch, as BatchNorm does, is in train mode.
        TypeError: as `gradient`.

    Example:
        >>> import torch, fluxlike as fl
        >>> model = {"w": torch.tensor([1.0, 2.0])}
        >>> loss = lambda m, x: (m["w"] * x).sum()
        >>> fl.per_example_gradient(loss, model, torch.tensor([[3.0, 4.0], [5.0, 6.0]]))
        {'w': tensor([[3., 4.],
                [5., 6.]])}
    """
    require_function("per_example_gradient", f, args, argnums)
    differentiated = set(argument_numbers(argnums, len(args))[0])
    _check_batches(args, differentiated)
    known = used.mesh()
    if known is not None:
        known.require_one_mesh(
            [args[n] for n in sorted(differentiated)],
            [x for n, x in enumerate(args) if n not in differentiated],
        )
    level = functorch.level()

    def one(*members: Any) -> Any:
        batch = [x if n in differentiated else fmap(_batch_of_one, x) for n, x in enumerate(members)]
        with example.on_its_own():
            grads = gradient(f, *batch, argnums=argnums, wrt=wrt)
        return _taken_out(grads, level)

    in_dims = tuple(None if n in differentiated else 0 for n in range(len(args)))
    with contextlib.nullcontext() if key is None else seeded(key):
        each = vmap(one, in_dims, (0, None), randomness="different", chunk_size=chunk_size)
        return _put_back(*each(*args))


def _batch_of_one(x: Any) -> Any:
    return x.unsqueeze(0)


def _check_batches(args: tuple[Any, ...], differentiated: set[int]) -> None:
    """Raise unless the tensors of the batches all have the examples on their first axis."""
    first: tuple[str, int] | None = None
    for n, batch in enumerate(args):
        if n in differentiated:
            continue
        leaves, treedef = flatten(batch)
        for i, x in enumerate(leaves):
            if not isinstance(x, Tensor):
                continue
            place = f"{structure_of(treedef).paths[i] or 'the whole'} of argument {n}"
            if x.ndim == 0:
                raise ValueError(
                    f"per_example_gradient: {place} is a 0-d tensor, and batches have the examples on the "
                    "first axis; what the examples share, the function closes over"
                )
            if first is None:
                first = place, x.shape[0]
            elif x.shape[0] != first[1]:
                raise ValueError(
                    f"per_example_gradient: {first[0]} has {first[1]} examples and {place} {x.shape[0]}, on "
                    "their first axes; what the examples share, the function closes over"
                )
    if first is None:
        raise ValueError(
            "per_example_gradient found no batch: write per_example_gradient(loss, model, x, y), where "
            "tensors of the arguments that are not differentiated have the examples on their first axis"
        )


def _taken_out(grads: Any, level: int) -> tuple[Any, dict[int, Assigned]]:
    """The gradients of one example, and apart from them, by their places, the buffers that layers assigned.

    Raises:
        ValueError: one depends on the example.
    """
    leaves, treedef = flatten(grads)
    found: dict[int, Assigned] = {}
    for i, x in enumerate(leaves):
        if isinstance(x, Assigned):
            value = functorch.at_level(x.value, level)
            if value is None:
                path = structure_of(treedef).paths[i]
                raise ValueError(
                    f"the buffer {path} was assigned a value of each example, by a layer in train mode; "
                    f"{example.NO_BATCH}"
                )
            found[i], leaves[i] = Assigned(value), None
    return treedef.unflatten(leaves), found


def _put_back(grads: Any, found: dict[int, Assigned]) -> Any:
    """The gradients of all examples, with the buffers."""
    if not found:
        return grads
    leaves, treedef = flatten(grads)
    return treedef.unflatten([found.get(i, x) for i, x in enumerate(leaves)])
