"""From a function of flat lists of tensors to a compiled one: private parts of make_fx and Inductor.

`trace` records, `functional` records once more without writes and in the layouts that kernels want,
`passes` chooses kernels, `build` calls Inductor. Imported when first used: it loads the compiler.
"""

import warnings

with warnings.catch_warnings():  # parts of torch that the compiler loads warn of each other
    warnings.simplefilter("ignore", DeprecationWarning)
    import torch._inductor.compile_fx  # noqa: F401
