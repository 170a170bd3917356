"""Jacobians of tensors that were computed already, from the gradient graph that led to them: ``jaccli.graph_jacobian``.

    outputs, inputs ─→ jacobian_of_tensors   checks arguments, chooses rows or columns, verifies, explains errors
                          └─ passes          Jᵀ times k cotangents, J by rows or columns, independent backward passes
    source, target  ─→ differentiable_rows   rows and products of J that can be differentiated again, for ``penalty``

In: tensors with a gradient graph; no network, no layer names. Out: ``(*output.shape, *input.shape)`` of each output and
input, or ``(batch, n_out, n_in)``. Why beside ``methods``: a graph cannot be run again at another point:
there is no forward mode, no capture and no second sample to compare with.
"""
