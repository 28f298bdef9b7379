"""Trees over many devices: tensors of which each rank holds a part, and what they compute.

From the outside in:

- Trees: `place` brings them onto a mesh and back, and `used` is what floors above ask. `plans` say how a
  parameter is divided, `layouts` what that means for a tree, `entries` which nodes of it follow a
  parameter, `agreement` whether all ranks have it alike. `ranks` is for work that all ranks of a job do
  together.
- Tensors: `tensors` has the two kinds, and the one function that every torch function of them goes through.
  `parts` says what of a tensor is here.
- Functions: `routes` are those that DTensor doesn't know or gets wrong, a kind in each file. Most are
  said with `rowwise`: by rows, or on all rows; batch norm with `statistics`, and `signatures` names
  arguments. `calls` does the same for a function of the user's own, and `unknown` says so where nobody
  knows a function.
- Gradients: `gathering` and `groups` bring divided parameters together in the forward pass and once more in
  the backward pass, `reduce` sums what is whole on each rank; `transforms` is for vmap and the derivatives
  made of it.
"""
