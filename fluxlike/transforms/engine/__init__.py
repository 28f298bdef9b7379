"""What the transforms are made of.

- A call: `function` refuses what is none, `argument` says which leaves are differentiated, `called` calls
  the function on them, `output` takes apart what it returned, and `loss` finds the scalar in it. `over_mesh`
  does so for tensors over a mesh.
- A derivative: `motors` are the three ways to run a gradient, `entrywise` one pass for each entry, `link` one
  node of autograd with a rule of its own.
- A call again: `rerun` keeps the scope that it needs, `captured` finds the tensors of its closure, `template`
  is a tree without its tensors.
"""
