"""Floor 4, transforms: functions of trees that make functions of trees.

``gradient.py`` is where to begin, ``motors.py`` how it runs. The other derivatives are a file each, named as
the function is; ``vmap.py`` maps over members; ``jit/`` compiles; ``control/`` holds ``scan`` and ``cond``;
``purity/`` finds what a function changes.
"""
