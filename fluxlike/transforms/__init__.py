"""Floor 4, transforms: functions of trees that make functions of trees.

``gradient.py`` is where to begin; ``engine/`` is what it and the other derivatives are made of. These are a
file each, named as the function is; ``vmap.py`` maps over members; ``jit/`` compiles;
``control/`` holds ``scan`` and ``cond``; ``purity/`` finds what a function changes.
"""
