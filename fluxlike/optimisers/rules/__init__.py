"""The rules that step, by what they have in common.

`descent`: along the gradient and its momentum. `adam/`: by the first moment over the root of the second.
`adaptive`: by the second moment alone. `sign`: by the sign. `matrix`: by rows and columns, or whole matrices.
`schedule_free`: by an average in the place of a schedule.
"""
