"""Random trees: every kind of node, ties, None, empty nodes, mixed dtypes, and constants."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import attrs
import torch
from hypothesis import strategies as st
from torch import Tensor

import fluxlike as fl


class Pair(NamedTuple):
    x: Any
    y: Any


@fl.functor
class Plain:
    def __init__(self, x, y):
        self.x, self.y = x, y


@fl.functor
@dataclass
class Data:
    x: Any
    y: Any


@fl.functor
@dataclass(frozen=True)
class Frozen:
    x: Any
    y: Any


@fl.functor
class Slots:
    __slots__ = ("x", "y")

    def __init__(self, x, y):
        self.x, self.y = x, y


@fl.functor
@attrs.define
class Attrs:
    x: Any
    y: Any


class Inherited(Plain):
    pass


@fl.functor(buffers=("y",))
class Buffered:
    def __init__(self, x, y):
        self.x, self.y = x, y


@fl.functor(children=("x", "y"))
class Riding:
    """Has an attribute that is no child."""

    def __init__(self, x, y):
        self.x, self.y, self.stride = x, y, (2, "same")


FUNCTORS = (Plain, Data, Frozen, Slots, Attrs, Inherited, Buffered, Riding)
PARAMETER_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64)
OTHER_DTYPES = (torch.int64, torch.bool)
SHAPES = ((), (1,), (3,), (2, 2), (0,))


def make_tensor(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> Tensor:
    """A tensor of small numbers that every dtype holds exactly, drawn without the global generator."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-8, 9, shape, generator=generator)
    if dtype.is_complex:
        return torch.complex(x.float(), torch.randint(-8, 9, shape, generator=generator).float()).to(dtype)
    return x.to(dtype)


def tensors(dtypes: tuple[torch.dtype, ...] = PARAMETER_DTYPES + OTHER_DTYPES) -> st.SearchStrategy[Tensor]:
    return st.builds(make_tensor, st.sampled_from(dtypes), st.sampled_from(SHAPES), st.integers(0, 1000))


constants = st.one_of(
    st.none(),
    st.sampled_from([torch.tanh, len, fl.relu]),
    st.booleans(),
    st.integers(-5, 5),
    st.floats(allow_nan=False),
    st.text(max_size=3),
)


def _nodes(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    few = st.lists(inner, max_size=3)
    return st.one_of(
        few,
        few.map(tuple),
        st.dictionaries(st.text("abc.[']", max_size=3), inner, max_size=3),
        st.dictionaries(st.sampled_from("zyx"), inner, max_size=3).map(OrderedDict),
        st.builds(Pair, inner, inner),
        *(st.builds(cls, inner, inner) for cls in FUNCTORS),
    )


@st.composite
def trees(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = PARAMETER_DTYPES + OTHER_DTYPES) -> Any:
    """A tree that holds at least one parameter; tensors of a small pool stand at several places."""
    pool = draw(st.lists(tensors(dtypes), min_size=1, max_size=3))
    parameter = draw(tensors((torch.float32,)))
    leaves = st.one_of(st.sampled_from([*pool, parameter]), tensors(dtypes), constants)
    return draw(st.permutations([parameter, draw(st.recursive(leaves, _nodes, max_leaves=10))]))


def parts(node: Any) -> list[Any] | None:
    """The children of a node with all that else makes it up, found without the library; None for a leaf."""
    if isinstance(node, dict):
        return list(node.values())
    if isinstance(node, (list, tuple)):
        return list(node)
    return [node.x, node.y] if isinstance(node, FUNCTORS) else None


def leaves_of(tree: Any) -> list[Any]:
    """All leaves in the order of the object's own construction, found without the library."""
    inner = parts(tree)
    return [tree] if inner is None else [leaf for child in inner for leaf in leaves_of(child)]


def ties(tree: Any) -> list[int]:
    """For each tensor, the number of the first place that holds the same object."""
    tensors_ = [x for x in leaves_of(tree) if isinstance(x, Tensor)]
    return [next(i for i, y in enumerate(tensors_) if y is x) for x in tensors_]


def assert_same_nodes(a: Any, b: Any) -> None:
    """The nodes of two trees agree in class, keys and attributes; their leaves may differ."""
    mine, theirs = parts(a), parts(b)
    assert (mine is None) == (theirs is None)
    if mine is None or theirs is None:
        return
    assert type(a) is type(b)
    assert len(mine) == len(theirs)
    if isinstance(a, dict):
        assert list(a) == list(b)
    elif hasattr(a, "__dict__"):
        assert a.__dict__.keys() == b.__dict__.keys()
        assert getattr(a, "stride", None) == getattr(b, "stride", None)
    for x, y in zip(mine, theirs, strict=True):
        assert_same_nodes(x, y)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors agree in dtype, shape and every bit."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.is_complex():
        a, b = torch.view_as_real(a), torch.view_as_real(b)
    flat = [x.detach().reshape(-1).clone(memory_format=torch.contiguous_format) for x in (a, b)]
    return not flat[0].numel() or torch.equal(flat[0].view(torch.uint8), flat[1].view(torch.uint8))


def same_content(a: Any, b: Any) -> bool:
    """Whether two trees agree in nodes, bits and constants."""
    assert_same_nodes(a, b)
    return all(
        same_bits(x, y) if isinstance(x, Tensor) and isinstance(y, Tensor) else type(x) is type(y) and x == y
        for x, y in zip(leaves_of(a), leaves_of(b), strict=True)
    )
