"""Adam and its family: steps by the first moment of the gradient over the root of the second.

m and v are the moments, ``^`` their values corrected for the start at zero, t the step from 1.
"""

from fluxlike.optimisers.rules.adam.adam import Adam, AdamW, AMSGrad
from fluxlike.optimisers.rules.adam.variants import AdaBelief, AdaMax, Lamb, NAdam, OAdam, RAdam

__all__ = ["AMSGrad", "AdaBelief", "AdaMax", "Adam", "AdamW", "Lamb", "NAdam", "OAdam", "RAdam"]
