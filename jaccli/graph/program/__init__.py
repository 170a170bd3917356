"""The engine's run as a program that is fast to run again: what ``jaccli.plan`` calls at further samples.

In: a captured graph and an elimination plan. Out: programs, Python functions of the samples, a line for each operator,
that give J ``(batch, n_out, n_in)``. Why: running the engine itself again would take some 20 µs an operator for
its bookkeeping; a program takes the operators' own time, in fewer operators and without new memory.

    Graph + EliminationPlan
      │ trace            run once, record every operator
      ▼
    Instructions ──► dead_code ──► peephole ──► horizontal_fusion ──► onednn (a rival)
      │ memory_plan      places for intermediate results in one arena
      │ codegen          a Python function
      ▼ verify           the same J as the engine's, or fall back to fewer passes
    Program ──► torch_compile, if asked for;  result_pool gives the memory of J

``instructions`` is the form that passes take and return, ``call_overhead`` the limits that they share, and ``pipeline``
the list of them. ``differentiable`` makes programs that gradients flow through, without passes
that write in place. Nothing here knows of plans, samples or methods: ``run`` chooses among programs by the clock.
"""
