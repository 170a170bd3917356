"""What the code asks of ``torch.autograd``, in one place: the graph, passes through it, and their cotangents.

    grad_fn of a value ─→ walk       the operators of the graph, what they computed, the coarsest dtype
    target, source, u  ─→ products   Jᵀu and Jᵀ[u₁ … u_k] by backward passes, Jv by two of them ("double vjp")
    n, chunk           ─→ seeds      one-hot cotangents (or tangents): with them a product is a row (a column) of J;
                                     random ones, to verify products with
    Jᵀu of some samples ─→ sample_mixing   do samples mix? sets of samples that tell any two of them apart

In: tensors that have a gradient graph. Out: plain tensors; nothing here knows a network or a layer. Why: here is what
torch's kernels and imports need: batch norm's memory layout, the import of sympy, warnings of batched passes.
"""
