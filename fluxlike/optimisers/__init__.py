"""Optimisers: the interface, the rules, and what goes around them.

What users call: `state` (`setup`), `update`, `adjust` (`freeze` and `thaw` too), `averages` (`averaged`).
What they choose from: `rules/`, which step; `links`, which change a gradient before; `wrappers/`, rules
around rules, with two more in `averages`. What a rule is, `rule` says, and `checks` what its
hyperparameters may be.

How a step is taken, from the tree down to the numbers: `slots` lines up state, model and gradients, `step`
goes link by link over the tree, `batch` applies one rule to the parameters that share it. Where the rule is
written as a `formula`, a `group` of parameters that are alike moves at once: by torch's `kernels`, in
`flat` blocks that stay in the cache, or by foreach calls over `leaves`. `fields` and `counters` are the
states and step counts of a group. `lane` remembers what the last step found out, and `on_ranks` is for
parameters that are divided over a mesh.
"""
