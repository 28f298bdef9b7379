"""`from_array` and `to_array`: trees of other libraries' arrays as trees of tensors, and back."""

from __future__ import annotations

import sys
from typing import Any, Literal

from torch import Tensor

from fluxlike.bridges.arrays.array_memory import is_array, is_jax_array, tensor_of
from fluxlike.bridges.arrays.tensor_memory import LIBRARIES
from fluxlike.trees.fmap import fmap_with_path
from fluxlike.trees.leaves import Assigned, is_harmless
from fluxlike.trees.structure import flatten, structure_of
from fluxlike.trees.values import lent

__all__ = ["flatten_arrays", "from_array", "to_array"]

_CHOICES = (None, True, False)


def from_array(x: Any, /, *, copy: bool | None = None) -> Any:
    """An array of another library as a tensor, or a tree of them as a tree of tensors.

    Taken are the arrays of numpy, JAX and CuPy, and everything that offers its memory by DLPack,
    ``__cuda_array_interface__``, ``__array_interface__`` or ``__array__``. Memory is shared where torch can:
    what is written to one is then seen in the other. The arrays of JAX are shared too, though they never
    change for JAX: write to such a tensor (by an operation whose name ends in ``_``) only after a copy.
    Nothing in fluxlike writes to them: donation copies what is of JAX, and refuses other memory that torch
    does not own.

    Args:
        x: an array, or any tree with arrays in it. Its tensors and constants are kept as they are; of
            ``Assigned``, the value is taken.
        copy: None copies where memory can't be shared: what is read-only, runs backwards, is unaligned or
            of the other order of bytes. True copies all arrays; False raises where a copy is needed, as in
            the array API standard. (default: None)

    Returns:
        A tree of the same structure. Tensors are of the same shape and dtype and on the same device as the
        arrays; an array at several places becomes one tensor, tied.

    Raises:
        TypeError: `x` is no array and no tree; or an array of a dtype that torch has not, of numpy's
            objects or texts, structured or masked, or one that JAX traces. It names the place.
        ValueError: `copy` is False, and the array at the place has to be copied, and why; or another `copy`.

    Example:
        >>> import numpy as np, fluxlike as fl
        >>> w = np.zeros(2, np.float32)
        >>> params = fl.from_array({"encoder": w, "decoder": w, "name": "tied"})
        >>> params["encoder"] is params["decoder"]
        True
        >>> w[0] = 5  # the memory is shared
        >>> params["decoder"]
        tensor([5., 0.])

    Reference:
        The `array API standard <https://data-apis.org/array-api/latest/>`_ and
        `DLPack <https://dmlc.github.io/dlpack/latest/>`_.
    """
    _require_copy(copy)
    leaves, treedef = flatten_arrays(x)
    if treedef.is_leaf() and not isinstance(x, (Tensor, Assigned)) and not is_array(x):
        raise TypeError(
            f"from_array takes an array or a tree of arrays, found a {type(x).__name__}; write "
            "torch.tensor(x) for numbers"
        )
    where = structure_of(treedef).paths
    made: dict[int, Tensor] = {}

    def convert(place: str, array: Any) -> Any:
        if not is_array(array):
            return array
        if id(array) not in made:
            made[id(array)] = tensor = tensor_of(place or "the array", array, copy)
            if is_jax_array(array) and not copy:
                lent(tensor)
        return made[id(array)]

    for i, (place, leaf) in enumerate(zip(where, leaves, strict=True)):
        given = leaf.value if isinstance(leaf, Assigned) else leaf
        found = convert(place, given)
        if found is not given:
            leaves[i] = Assigned(found) if isinstance(leaf, Assigned) else found
    return treedef.unflatten(leaves)


def to_array(x: Any, /, to: Literal["numpy", "jax", "cupy"] = "numpy", *, copy: bool | None = None) -> Any:
    """A tensor as an array of another library, or a tree of tensors as a tree of arrays.

    Memory is shared where the library can, so what is written to one is seen in the other; JAX takes its
    arrays for unchangeable, so don't write to tensors that it shares. Donation copies a tensor that JAX or
    CuPy looks at, and refuses one that numpy looks at.

    Args:
        x: a tensor, or any tree with tensors in it. Its constants are kept as they are, and an
            ``nn.Parameter`` is read as its value.
        to: the library: ``"numpy"``, ``"jax"`` or ``"cupy"``. (default: "numpy")
        copy: None copies where memory can't be shared: from an accelerator to numpy, and to JAX what is not
            contiguous, starts at an address that 64 does not divide or has to be narrowed. True copies all
            tensors; False raises where a copy is needed, as in the array API standard. (default: None)

    Returns:
        A tree of the same structure and ties, of arrays of the same shape and dtype; bfloat16 and float8 are
        in numpy those of the package ml_dtypes. To JAX, whole numbers of 64 bits become 32 while
        ``jax_enable_x64`` is off, after a check that they fit. Arrays of numpy are in main memory, others on
        the device where the tensor is.

    Raises:
        ValueError: a tensor with a graph, whose gradient would be lost; one of the meta device or of
            ``vmap``, without numbers; or `copy` is False, and a copy is needed. It names the place.
        TypeError: a sparse, nested or quantised tensor, or one of a dtype that the library has not. To JAX,
            floats of 64 bits while ``jax_enable_x64`` is off: JAX would cut them.
        OverflowError: to JAX, a whole number does not fit.
        ImportError: the library is not there.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.to_array({"w": torch.nn.Parameter(torch.ones(2)), "f": fl.relu})["w"]
        array([1., 1.], dtype=float32)
    """
    _require_copy(copy)
    if to not in LIBRARIES:
        raise ValueError(f"to={to!r}: write 'numpy', 'jax' or 'cupy'")
    if flatten(x)[1].is_leaf() and not isinstance(x, (Tensor, Assigned)):
        raise TypeError(f"to_array takes a tensor or a tree of tensors, found a {type(x).__name__}")
    convert = LIBRARIES[to]

    def array(place: str, leaf: Any) -> Any:
        if isinstance(leaf, Assigned) and isinstance(leaf.value, Tensor):
            return Assigned(array(place, leaf.value))
        return convert(place or "the tensor", leaf, copy) if isinstance(leaf, Tensor) else leaf

    return fmap_with_path(array, x, leaves="all")


def flatten_arrays(x: Any, /) -> tuple[list[Any], Any]:
    """All leaves of a tree, arrays of other libraries among them, and its treedef.

    Raises:
        TypeError: an object is a node of JAX' trees alone, so that arrays in it would be passed by.
    """
    leaves, treedef = flatten(x, is_array)
    jax = sys.modules.get("jax")
    if jax is None:
        return leaves, treedef
    for i, leaf in enumerate(leaves):
        if not is_harmless((type(leaf),)) and not is_array(leaf) and not jax.tree_util.all_leaves([leaf]):
            name = type(leaf).__name__
            raise TypeError(
                f"{structure_of(treedef).paths[i] or 'the tree'} is a {name}, which is a node for JAX alone: "
                f"register the class by fluxlike.functor({name}), or give a dict or a list of what it holds, "
                "such as jax.tree.leaves(x)"
            )
    return leaves, treedef


def _require_copy(copy: Any) -> None:
    if not any(copy is choice for choice in _CHOICES):
        raise ValueError(f"copy={copy!r}: write None, True or False")
