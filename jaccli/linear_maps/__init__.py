"""Batches of matrices that are known by their products: the basis of ``jaccli.operator``.

    two products ─→ matrix_free              rows, trace, ‖J‖_F, the matrices themselves
                      ├─ linear_map          with A.T, A + B, c * A, A @ B, A - A.I; SciPy by scipy_operator
                      ├─ rescaled            J/s near size 1, for estimators that square products
                      └─ extreme_singular_values   the k largest or smallest: ARPACK, block Krylov, or J itself
    implementations of one product           the first that works and is verified; by_rows where only Jᵀu is known
    norms, agreement, square                 norms of any size; tolerances; the refusal of a J that is not square

In: ``_matmat``, ``(batch, n_in, k)`` → ``(batch, n_out, k)``, and ``_rmatmat``, ``(batch, n_out, k)`` → ``(batch, n_in,
k)``; shape, dtype and device. Out: maps again, or figures of each sample, ``(batch,)`` float64. Why: J of a large
layer pair does not fit the memory, and a product with it costs no more than a pass. Nothing here knows a network.
"""
