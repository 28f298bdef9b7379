"""Layers, as plain classes registered with `functor`.

A layer or a family of layers has a file of its name. What several of them share stands beside them: `auto`
(sizes found from an example), `steps` and `activations`; `checks`, `construct`, `lengths`, `padding`,
`printing` and `sizes` for their arguments and inputs; `errors` and `place` for errors that name a layer's
path; `autocast` and `normalisation`; `layouts` and `recurrent_layouts` for parameters of other frameworks;
`absent` for names and arguments that modules of torch have.
"""

from fluxlike.layers import absent  # noqa: F401 — before the first layer is registered
