"""Accumulation of J: in which order the derivatives of the operators are multiplied, and the multiplication.

    maps of the nodes ─→ cuts ─→ segments ─→ bracketing ─┬─→ EliminationPlan ─→ accumulate ─→ J (batch, n_out, n_in)
          └─→ slice_pushdown ─↗       pattern ─→ compressed ─┘        └─→ describe ─→ text

In: a captured graph, and the linear maps that ``rules`` gives for its operators. Out: an ``EliminationPlan`` with its
predicted cost; J, or products with J, at the point of the capture. ``sweep`` pulls and pushes blocks through a
segment, ``products`` single vectors through all. Why: the order alone decides between microseconds and
seconds: multiplied at a bottleneck of 32 elements, J of 784 x 784 costs 32 vectors each way instead of 784.
"""
