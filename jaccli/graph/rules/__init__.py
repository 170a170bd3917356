"""The derivative of every operator, as a chain of linear primitives for each pair of an active input and an output.

    Node ─→ derivatives ─→ registry: operator name → rule ─→ Map(input, output, primitives)
                             ├─ elementwise      y = f(x): diagonals
                             ├─ shape            views, slices, concatenation
                             ├─ indexing         y = x[index], and writing at an index
                             ├─ linear           matrix products, convolutions, pooling, resampling
                             ├─ reductions       sums, softmax, normalisations
                             └─ dense_fallback   a matrix for each sample, by autograd through the operator

In: a node of a captured graph. Out: its ``Map``s, whose factors are lazy: planning looks at no number. A new operator
takes one function with ``@rule`` (or ``@unary_rule``) and its formula as docstring, built from ``steps``.
Why: J is a product of these, and the structure of each is lost to a backward pass.
"""
