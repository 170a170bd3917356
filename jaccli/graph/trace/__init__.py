"""The operators of one forward pass, recorded.

    LayerFunction ─→ capture ─→ Graph of Nodes and Values          f itself, in single-assignment form
                       └─ recorder ─ aliasing ─ functionalize      writes in place become new values (by effects)
    Graph ─→ J at a point, below a tracer ─→ Instructions          the accumulation of J, for ``program``

In: a function between two layers, at a point. Out: a ``Graph``, whose nodes call operators on values; or, of the
accumulation of J, the list of instructions that ``program`` compiles. ``ir`` has the form, ``recurrent_cells`` what an
accelerator's fused layers consist of. Why two recorders (the other one is ``tracer``): they record two things, the
network, where writes and branches must be understood, and jaccli's own code, which is known.
"""
