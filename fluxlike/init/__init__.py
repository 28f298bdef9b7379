"""Initial values of weights: functions of a shape. The formulas are those of ``torch.nn.init``.

They take the default dtype and device (``with torch.device("meta"):`` too), and draw from the key in
scope; where there is none, from torch's generator. ``torch.zeros``, ``torch.ones`` and any other function
of a shape serve as well. `reinit` gives the layers of a model new ones.
"""

from typing import TYPE_CHECKING

from fluxlike.init.by_type import declare_weights
from fluxlike.init.matrices import identity, orthogonal, sparse
from fluxlike.init.scaled import (
    glorot_normal,
    glorot_uniform,
    kaiming_normal,
    kaiming_uniform,
    lecun_normal,
    lecun_uniform,
)
from fluxlike.init.truncated import truncated_normal
from fluxlike.rooms import room

__all__ = [
    "declare_weights",
    "glorot_normal",
    "glorot_uniform",
    "identity",
    "kaiming_normal",
    "kaiming_uniform",
    "lecun_normal",
    "lecun_uniform",
    "orthogonal",
    "sparse",
    "truncated_normal",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = room(__name__, __all__)
