"""A fit on all ranks of a mesh: what they must have in common, and what only the first of them does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fluxlike.placement.mesh import used
from fluxlike.scope.key import Key
from fluxlike.trees.fmap import fmap
from fluxlike.trees.structure import flatten, structure_of

__all__ = ["Ranks", "mesh_of", "ranks_of", "whole", "whole_numbers"]


def mesh_of(tree: Any, /) -> Any:
    """The mesh over which a tree has tensors; None where it has none."""
    known = used.mesh()
    if known is None:
        return None
    return next((x.device_mesh for x in flatten(tree)[0] if known.over(x)), None)


def whole(tree: Any, /) -> Any:
    """A tree whose tensors over a mesh are whole and plain on each rank; all ranks call it."""
    known = used.mesh()
    if known is None:
        return tree
    if isinstance(tree, Tensor):
        return known.whole(tree.detach()) if known.over(tree) else tree
    return fmap(lambda x: known.whole(x.detach()) if known.over(x) else x, tree)


def whole_numbers(out: Mapping[str, Any], /) -> Mapping[str, Any]:
    """What a step gave, with its 0-d tensors plain: whoever reads one waits for no other rank."""
    known = used.mesh()
    if known is None or not any(known.over(x) for x in out.values()):
        return out
    return {name: whole(x) if isinstance(x, Tensor) and x.ndim == 0 else x for name, x in out.items()}


class Ranks:
    """The ranks that fit a learner together: those of a mesh, or this process alone.

    Attributes:
        first: whether this is the first of them, which shows progress and writes files.
        over_mesh: whether they are those of a mesh.
    """

    def __init__(self, mesh: Any) -> None:
        self._mesh = mesh if mesh is not None and mesh.size() > 1 else None
        self.first, self.over_mesh = True, mesh is not None
        self._votes: list[Any] = []
        if self._mesh is not None:
            from fluxlike.placement.mesh.agreement import is_first

            self.first = is_first(mesh)

    def vote(self) -> Any:
        """A question that all ranks put equally often; ``put(yes)`` says whether any of them said yes."""
        if self._mesh is None:
            return _Alone()
        from fluxlike.placement.mesh.agreement import Vote

        vote = Vote(self._mesh)
        self._votes.append(vote)
        return vote

    def end(self) -> None:
        """Wait for the answers that are under way."""
        while self._votes:
            self._votes.pop().end()

    def firsts(self, seconds: float, /) -> float:
        """The first rank's number of seconds."""
        if self._mesh is None:
            return seconds
        return self._gathered([int(seconds * 1e9)])[0][0] / 1e9

    def agreed(self, learner: Any, goal: int, /) -> Any:
        """The learner, with the key of the first rank where each has drawn its own.

        Raises:
            ValueError: the ranks' learners stand at different places, or were given different keys.
        """
        if self._mesh is None:
            return learner
        low, high = learner.key.data.tolist()
        own = {
            "the last epoch": goal,
            "epoch": learner.epoch,
            "step": learner.step,
            "phase": learner.phase,
            "batch": learner.batch,
            "whether it has a key": int(learner.keyed),
        }
        from fluxlike.placement.mesh.agreement import ranks_of as numbers_of

        first, *others = self._gathered([*own.values(), low, high])
        numbers = numbers_of(self._mesh)
        for rank, other in zip(numbers[1:], others, strict=True):
            for name, a, b in zip(own, first, other, strict=False):
                if a != b:
                    raise ValueError(
                        f"the learners of the ranks of a mesh differ: {name} is {a} on rank {numbers[0]} and "
                        f"{b} on rank {rank}; make them alike, or let all resume from one checkpoint"
                    )
            if learner.keyed and first[-2:] != other[-2:]:
                raise ValueError(
                    f"the learners of rank {numbers[0]} and rank {rank} have different keys, and the ranks "
                    "of a mesh draw alike; give all the same, Learner(…, key=fluxlike.Key(0)), or none"
                )
        if first[-2:] == [low, high]:
            return learner
        low, high = first[-2:]
        return learner.replace(key=Key(low | high << 32), keyed=learner.keyed)

    def _gathered(self, numbers: list[int]) -> list[list[int]]:
        from fluxlike.placement.mesh.agreement import gathered_numbers

        assert self._mesh is not None
        return gathered_numbers(numbers, self._mesh)


class _Alone:
    """The vote of one process."""

    delay = 0

    def put(self, yes: bool, /) -> bool:
        return yes


def ranks_of(learner: Any, /) -> Ranks:
    """The ranks that fit a learner together, from where its model and its data are.

    Raises:
        ValueError: the data is over a mesh and the model is not.
    """
    mesh = mesh_of(learner.model)
    for name, data in learner.data.items():
        device = getattr(data, "device", None)
        if not hasattr(device, "mesh_dim_names"):
            continue
        if mesh is None:
            raise ValueError(
                f"the data of {name} is over a mesh, and the model is {_where(learner.model)}; write "
                "Learner(fluxlike.to_device(model, mesh), …)"
            )
        if device != mesh:
            raise ValueError(
                f"the data of {name} is over {device}, and the model over {mesh}; give both the same"
            )
    return Ranks(mesh)


def _where(model: Any) -> str:
    leaves, treedef = flatten(model)
    for path, x in zip(structure_of(treedef).paths, leaves, strict=True):
        if isinstance(x, Tensor):
            return f"on {x.device} at {path or 'its root'}"
    return "not"
