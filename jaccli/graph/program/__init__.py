"""The engine's run as a program that is fast to run again: what ``jaccli.plan`` calls at further samples.

A captured graph and an elimination plan go in. Out come programs: Python functions of the samples, a line for each
operator, that give J ``(batch, n_out, n_in)``. Running the engine itself again would take some 20 µs an operator for
its bookkeeping; a program takes the operators' own time, in fewer operators and without new memory.

    Graph + EliminationPlan
      │ trace            run once, record every operator
      ▼
    Instructions ──► dead_code ──► peephole ──► horizontal_fusion ──► onednn (a rival)
      │ memory_plan      places for intermediate results in one arena
      │ codegen          a Python function
      ▼ verify           the same J as the engine's, or fall back to fewer passes
    Program ──► torch_compile, if asked for;  result_pool gives the memory of J

``pipeline`` holds the list of passes. ``differentiable`` makes programs that gradients flow through, without passes
that write in place. Nothing here knows of plans, samples or methods: ``run`` chooses among programs by the clock.
"""
