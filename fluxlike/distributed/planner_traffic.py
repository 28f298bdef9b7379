"""`communication`: what a rank sends to others, counted as it is sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from fluxlike._private.dispatch import arguments
from fluxlike._private.heard import Heard, group_of, in_backward
from fluxlike.aligned import aligned
from fluxlike.trees.show import number, size_text

__all__ = ["Sent", "Traffic", "communication", "traffic_table"]


@dataclass(frozen=True)
class Sent:
    """Collectives of one kind.

    Attributes:
        kind: ``"all_gather"``, ``"reduce_scatter"``, ``"all_reduce"``, ``"broadcast"``, …
        axis: the axis of the mesh along which they ran; elsewhere what torch calls their group.
        phase: ``"backward"`` for those inside a backward pass, else ``"forward"``.
        count: how many there were.
        bytes: how many bytes this rank sent in all of them.
    """

    kind: str
    axis: str
    phase: str
    count: int
    bytes: int


class Traffic:
    """What was sent; made by `communication`.

    Attributes:
        rows: a `Sent` for each kind, axis and phase, in the order in which they came first.
    """

    def __init__(self, mesh: DeviceMesh | None = None) -> None:
        self._axes = {} if mesh is None else _axes(mesh)
        self._counts: Counter[tuple[str, str, str]] = Counter()
        self._bytes: Counter[tuple[str, str, str]] = Counter()

    @property
    def rows(self) -> tuple[Sent, ...]:
        return tuple(Sent(*key, count, self._bytes[key]) for key, count in self._counts.items())

    @property
    def bytes(self) -> dict[str, int]:
        """The bytes sent, by the kind of collective."""
        found: Counter[str] = Counter()
        for row in self.rows:
            found[row.kind] += row.bytes
        return dict(found)

    @property
    def counts(self) -> dict[str, int]:
        """How many collectives there were, by their kind."""
        found: Counter[str] = Counter()
        for row in self.rows:
            found[row.kind] += row.count
        return dict(found)

    @property
    def total(self) -> int:
        """The bytes sent by collectives of all kinds."""
        return sum(self._bytes.values())

    def hear(self, operation: Any, args: Any, kwargs: Any, phase: str, /) -> None:
        """Count an operation, if it is a collective."""
        found = _collective(operation, args, kwargs)
        if found is None:
            return
        kind, group, size = found
        axis = self._axes.get(group.group_name) or group.group_desc or group.group_name
        self._counts[kind, axis, phase] += 1
        self._bytes[kind, axis, phase] += _sent(kind, size, group.size())

    def __str__(self) -> str:
        return "\n".join(traffic_table(self.rows))

    def __repr__(self) -> str:
        return str(self)


@contextmanager
def communication(mesh: DeviceMesh | None = None) -> Iterator[Traffic]:
    """Count what this rank sends to others by collectives, whoever calls them: fluxlike, DDP, FSDP2, you.

    The bytes are those of ring algorithms (Patarasuk & Yuan 2009, doi 10.1016/j.jpdc.2008.09.002): of a
    whole of B bytes and n ranks, each sends (n-1)/n·B to gather or to reduce and scatter it, and twice as
    much to reduce it for all. What goes out from one rank or comes in at one (broadcast, reduce, gather,
    scatter) is the mean over the ranks. A barrier counts for nothing.

    Args:
        mesh: names the axes. (default: None, groups go by what torch calls them)

    Returns:
        A context; ``as traffic`` gives a `Traffic`, with ``bytes``, ``counts``, ``total`` and ``rows``, which
        prints as a table. While it is open, every operation takes a few µs more, and fluxlike does as under a
        trace: `update` makes new tensors even where it may write over the old ones.

    Raises:
        NotImplementedError: from inside: a collective that is not known here.

    Example:
        >>> import torch, fluxlike as fl
        >>> from fluxlike.distributed.planner_traffic import communication
        >>> with communication() as traffic:
        ...     y = torch.ones(3) * 2
        >>> traffic.total, traffic.bytes
        (0, {})
    """
    traffic = Traffic(mesh)
    with _Counting(traffic):
        yield traffic


class _Counting(Heard):
    """Counts the collectives that it hears."""

    def __init__(self, traffic: Traffic) -> None:
        super().__init__()
        self._traffic = traffic

    def before(self, operation: Any, args: Any, kwargs: Any) -> None:
        self._traffic.hear(operation, args, kwargs, "backward" if in_backward() else "forward")


def traffic_table(rows: Sequence[Sent], /) -> Iterator[str]:
    """The lines of a table of what was sent."""
    cells = [(r.kind, r.axis, r.phase, number(r.count), size_text(r.bytes)) for r in rows]
    total = ("total", "", "", number(sum(r.count for r in rows)), size_text(sum(r.bytes for r in rows)))
    return aligned([("collective", "axis", "phase", "count", "sent"), *cells, total], right=[3, 4])


def _axes(mesh: DeviceMesh) -> dict[str, str]:
    names = mesh.mesh_dim_names or tuple(f"axis {i}" for i in range(mesh.ndim))
    return {str(mesh.get_group(i).group_name): name for i, name in enumerate(names)}


#: The kind of a collective and the argument that says how large it is, by the operation's name.
_KINDS = {
    "_allgather_base_": ("all_gather", "input_tensor"),
    "allgather_": ("all_gather", "input_tensors"),
    "allgather_coalesced_": ("all_gather", "input_list"),
    "allgather_into_tensor_coalesced_": ("all_gather", "inputs"),
    "all_gather_into_tensor": ("all_gather", "input"),
    "all_gather_into_tensor_out": ("all_gather", "input"),
    "all_gather_into_tensor_coalesced": ("all_gather", "inputs"),
    "_reduce_scatter_base_": ("reduce_scatter", "input_tensor"),
    "reduce_scatter_": ("reduce_scatter", "input_tensors"),
    "reduce_scatter_tensor_coalesced_": ("reduce_scatter", "inputs"),
    "reduce_scatter_tensor": ("reduce_scatter", "input"),
    "reduce_scatter_tensor_out": ("reduce_scatter", "input"),
    "reduce_scatter_tensor_coalesced": ("reduce_scatter", "inputs"),
    "allreduce_": ("all_reduce", "tensors"),
    "allreduce_coalesced_": ("all_reduce", "tensors"),
    "all_reduce": ("all_reduce", "input"),
    "all_reduce_": ("all_reduce", "input"),
    "all_reduce_coalesced": ("all_reduce", "inputs"),
    "all_reduce_coalesced_": ("all_reduce", "inputs"),
    "alltoall_": ("all_to_all", "input_tensors"),
    "alltoall_base_": ("all_to_all", "input"),
    "all_to_all_single": ("all_to_all", "input"),
    "broadcast_": ("broadcast", "tensors"),
    "broadcast": ("broadcast", "input"),
    "reduce_": ("reduce", "tensors"),
    "gather_": ("gather", "input_tensors"),
    "scatter_": ("scatter", "output_tensors"),
    "send": ("send", "tensors"),
    "isend": ("send", "tensor"),
}

_SILENT = {
    "barrier", "monitored_barrier_", "wait_tensor", "check_for_nan", "recv_", "recv_any_source_", "irecv",
    "_wrap_tensor_autograd",
}  # fmt: skip

_SPACES = ("c10d", "_c10d_functional", "_c10d_functional_autograd")


def _collective(operation: Any, args: Any, kwargs: Any) -> tuple[str, Any, int] | None:
    """The kind, group and bytes of a collective; None for any other operation."""
    if getattr(operation, "namespace", None) not in _SPACES:
        return None
    name = operation._schema.name.partition("::")[2]
    if name in _SILENT:
        return None
    if name not in _KINDS:
        raise NotImplementedError(
            f"communication() does not know how much {operation} sends; it counts {', '.join(_KINDS)}"
        )
    kind, sizes = _KINDS[name]
    given = arguments(operation, args, kwargs)
    group = given["group_name"] if "group_name" in given else given["process_group"]
    return kind, group_of(group), _bytes(given[sizes if sizes in given else "input"])


def _bytes(x: Any) -> int:
    return x.nbytes if isinstance(x, Tensor) else sum(map(_bytes, x))


def _sent(kind: str, size: int, ranks: int) -> int:
    """The bytes that a rank sends of a collective of `size` bytes, in the mean over the ranks."""
    if kind == "send":
        return size
    if kind == "all_gather":  # the size is that of the part of one rank
        return size * (ranks - 1)
    return round((2 if kind == "all_reduce" else 1) * size * (ranks - 1) / ranks)
