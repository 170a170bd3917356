"""Carry out what ``planning`` decided: J of samples, again and again, and products with J.

A ``Linearization`` (f of a layer pair at a point) and a ``Decision`` (how to obtain J) go in; an ``Outcome`` comes out,
J ``(batch, n_out, n_in)`` with how it was obtained, compared with products that were computed without it.

    samples ──► blocks ──► Linearization + Decision ──► execute ──► Outcome      jaccli.jacobian, every command
                  │                                        └► agreement, caveats: is it right, what to warn of
                  └─► autotune: the method against programs, by the clock
                        └─► planned.Plan ─► program_cache ─► program_runner ─► generated code      jaccli.plan
                              signature, fingerprint ┘  └ program_builder: record, verify, race

    linear_operator ─► jacobian_operator: JV and JᵀU, J never built      jaccli.operator
    estimates_of_pairs: figures from those products, block by block      spectrum, deviation
    benchmark, reference: methods side by side, against J in float64     bench
    compile_blocks: blocks by programs that went through torch.compile   --compile
"""
