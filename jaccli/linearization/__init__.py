"""f at a point: its value, products with its Jacobian J, each counted as a pass, and what these can be trusted for.

    f, point ─→ linearized_function   value, Jᵀu (backward passes), Jv (dual numbers, or two backward passes)
                   ├─ activation_memory   bytes of f's activations, which every pass holds
                   ├─ verify              is a product that of J? compared with plain backward passes, or with …
                   ├─ differences         … Jz by central differences of f, where there is no backward pass, on …
                   ├─ float64_copy        … f in float64: the same function with more digits
                   └─ rounding            how far rounding may move f(x) and Jᵀu, measured by rounding differently

In: a ``LayerFunction`` f: ``(batch, *source shape)`` → ``(batch, *target shape)``, and a point. Out: vectors of flat
samples, ``(batch, n_in)`` and ``(batch, n_out)``, and verdicts on them. Why: every method, operator and
training step shares one set of products, and one independent truth.
"""
