"""Figures of J: how far it is from the identity, its spectrum, its determinant, each of every sample.

    J ``(n_out, n_in)`` ─→ identity_distance, spectral, determinant     exact figures of one sample, by name
    a ``LinearMap``     ─→ product_estimates                            the same figures from products alone …
                             ├─ probing, quadrature                     … norms and traces; sums over the spectrum
                             └─ jackknife                               … each with its standard error
    records             ─→ consistency, isometry                        contradictions among figures; layer by layer

In: matrices, whose figures are computed in float64 on the CPU, or maps. Out: ``{name: float}`` of a sample,
or ``Estimate``s of ``(batch,)``. A J of any magnitude from 1e-300 to 1e300 has all figures that float64 can hold.
Why: a figure has one definition and one place, whether a command, ``jaccli.estimate`` or a test asks for it.
"""
