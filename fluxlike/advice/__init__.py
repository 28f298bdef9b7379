"""What to write for names and arguments of torch, JAX and Flux that fluxlike does not have.

The tables are in `words_of_torch`, `words_of_jax_and_flux` (where both have a name, torch's counts) and
`words_for_arguments`; `names`, `constructors` and `functions` make errors of them.
"""

from fluxlike.advice.constructors import teaching
from fluxlike.advice.functions import teaching_function
from fluxlike.advice.names import Absent, absent, call_hint
from fluxlike.advice.words_for_arguments import OF_ARGUMENTS, OF_FUNCTIONS, words_for
from fluxlike.advice.words_of_jax_and_flux import OF_FLUX, OF_JAX
from fluxlike.advice.words_of_torch import OF_CHAINS, OF_LAYERS, OF_MODULES, OF_RULES, WORDS

__all__ = [
    "OF_ARGUMENTS", "OF_CHAINS", "OF_FLUX", "OF_FUNCTIONS", "OF_JAX", "OF_LAYERS", "OF_MODULES",
    "OF_RULES", "WORDS", "Absent", "absent", "call_hint", "teaching", "teaching_function", "words_for",
]  # fmt: skip
