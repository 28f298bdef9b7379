"""Bridges to what is written for other systems. Each is imported when it is used first."""

from __future__ import annotations

import torch

from fluxlike.lazily import lazily
from fluxlike.trees.adopt import adopt

__all__ = ["WHEN_USED", "imported"]

#: The module of each public name, below this package.
WHEN_USED = {
    "from_array": "arrays.convert",
    "to_array": "arrays.convert",
    "load_flax": "foreign_files.flax",
    "read_flax": "foreign_files.flax",
    "load_flux": "foreign_files.flux",
    "read_flux": "foreign_files.flux",
    "load_keras": "foreign_files.keras",
    "read_keras": "foreign_files.keras",
    "from_jax": "jax.from_jax",
    "to_jax": "jax.to_jax",
    "from_torch": "torch_modules.from_torch",
    "TorchModule": "torch_modules.node",
    "to_torch": "torch_modules.to_torch",
    "from_torch_optimiser": "torch_optimisers.convert",
    "to_torch_optimiser": "torch_optimisers.convert",
}


imported = lazily(__name__, WHEN_USED)
adopt(torch.nn.Module, lambda module: imported("from_torch")(module))
