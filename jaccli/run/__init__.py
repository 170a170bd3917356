"""Carry out what ``planning`` decided: J of samples, again and again, and products with J.

In: a network, samples, pairs, and what the user asked for (``RunOptions``). Out: for each block of samples and pair a
``Piece`` with its ``Outcome``, J ``(batch, n_out, n_in)`` and how it was obtained; or a ``Plan``, or an operator.
Why: samples go through ``planning`` block by block, and no J leaves without being compared with other products.

    samples ──► blocks ──► Linearization + Decision ──► execute ──► Outcome      jaccli.jacobian, every command
       sample_ranges                                       └► agreement, caveats: is it right, what to warn of
                  └─► autotune: the method against programs, by the clock
                        └─► planned.Plan ─► program_cache ─► program_runner ─► generated code      jaccli.plan
                              signature, fingerprint ┘  └ program_builder: record, verify, race

    linear_operator ─► jacobian_operator: JV and JᵀU, J never built      jaccli.operator
    estimates_of_pairs: figures from those products, block by block      spectrum, deviation
    benchmark, reference: methods side by side, against J in float64     bench
    compile_blocks: blocks by programs that went through torch.compile   --compile
"""
