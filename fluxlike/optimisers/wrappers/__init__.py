"""Rules around rules: the chain, and what schedules, guards or widens the rule inside.

`EMA` and `Lookahead` stand with what reads them, in `optimisers/averages.py`.
"""

from fluxlike.optimisers.wrappers.chain import OptimiserChain
from fluxlike.optimisers.wrappers.finite import ApplyIfFinite
from fluxlike.optimisers.wrappers.mixed_precision import MixedPrecision
from fluxlike.optimisers.wrappers.scheduled import Scheduled

__all__ = ["ApplyIfFinite", "MixedPrecision", "OptimiserChain", "Scheduled"]
