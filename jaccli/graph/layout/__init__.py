"""Matrices between two activations, stored by their structure, and the algebra of such matrices.

    layout ─→ cost ─→ contraction ─→ spread, dense_write ─→ block ─→ windows ─→ alignment ─→ algebra

In: two activations' shapes, and numbers or a cost model. Out: a ``Block``, J or a part of it, with the axes that
both activations share stored once (a diagonal) or as windows (a convolution). It is added, multiplied, transposed
and at last written out as a matrix ``(batch, n_out, n_in)``.

Why: J of a per-token layer or of a convolution is mostly zero. Stored and multiplied in full it costs hundreds of
times as much. A block without numbers is charged to a cost model by the same operations, which is how a plan is
chosen before anything is computed. Begin with ``layout``; ``block`` says how layout, cost and numbers are kept apart.
"""
