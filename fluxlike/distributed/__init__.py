"""Many processes: meshes, how trees lie over them, and how a program runs on several ranks.

- A program: `launch` starts it and makes meshes; the end of one rank ends all by `watch`, `connection` and
  `hub`.
- Checkpoints: `checkpoints` has `save`, `load` and `consolidate`; `checkpoint_storage` is how torch writes
  and reads them, `checkpoint_index` what stands in them, `checkpoint_source` and `checkpoint_filling` the
  two ends of a load.
- Before it runs: `planner` estimates a step, by `planner_memory` and `planner_traffic`; `transformer_plan`
  has the plan of a transformer. The other plans, and trees over a mesh, are in `placement.mesh`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fluxlike.rooms import room

if TYPE_CHECKING:
    from fluxlike.distributed.checkpoints import consolidate, load, save
    from fluxlike.distributed.launch import init, mesh, rank, world_size
    from fluxlike.distributed.planner import Estimate, estimate
    from fluxlike.distributed.planner_traffic import Traffic, communication
    from fluxlike.distributed.transformer_plan import separate_projections, tensor_parallel
    from fluxlike.distributed.watch import abort
    from fluxlike.placement.mesh.calls import on_all_rows, on_rows
    from fluxlike.placement.mesh.place import shard_batch
    from fluxlike.placement.mesh.plans import Plan, by_path, combined, replicate, shard, split

__all__ = [
    "Estimate",
    "Plan",
    "Traffic",
    "abort",
    "by_path",
    "combined",
    "communication",
    "consolidate",
    "estimate",
    "init",
    "load",
    "mesh",
    "on_all_rows",
    "on_rows",
    "rank",
    "replicate",
    "save",
    "separate_projections",
    "shard",
    "shard_batch",
    "split",
    "tensor_parallel",
    "world_size",
]

#: Where each of these is: torch.distributed takes a while to import.
WHEN_USED = {
    "Estimate": "distributed.planner",
    "Traffic": "distributed.planner_traffic",
    "Plan": "placement.mesh.plans",
    "abort": "distributed.watch",
    "by_path": "placement.mesh.plans",
    "combined": "placement.mesh.plans",
    "communication": "distributed.planner_traffic",
    "consolidate": "distributed.checkpoints",
    "estimate": "distributed.planner",
    "init": "distributed.launch",
    "load": "distributed.checkpoints",
    "mesh": "distributed.launch",
    "on_all_rows": "placement.mesh.calls",
    "on_rows": "placement.mesh.calls",
    "rank": "distributed.launch",
    "replicate": "placement.mesh.plans",
    "save": "distributed.checkpoints",
    "separate_projections": "distributed.transformer_plan",
    "shard": "placement.mesh.plans",
    "shard_batch": "placement.mesh.place",
    "split": "placement.mesh.plans",
    "tensor_parallel": "distributed.transformer_plan",
    "world_size": "distributed.launch",
}

if not TYPE_CHECKING:
    __getattr__, __dir__ = room(__name__, __all__, {n: f"fluxlike.{home}" for n, home in WHEN_USED.items()})
