"""The sparsity of J, for compressed passes: which entries are zero at every point, and which rows may share a pass.

    Graph, maps ─→ pattern ─→ Pattern (n_out, n_in) ─→ coloring ─→ colour of each row or column
                     ├─ propagation   dependency sets from a primitive's input to its output
                     ├─ dependency    ids of index sets in the shape of an activation
                     ├─ index_sets    the pool of sets of source elements
                     └─ known_zeros   structural zeros: masks, masked weights

In: the active nodes of a graph with their maps. Out: the pattern of one sample's J, which misses no dependency at any
point, and colours such that two rows of one colour share no column. Why: rows of one colour cost one pass together.
Nothing here reads a value that varies.
"""
