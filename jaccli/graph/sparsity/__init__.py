"""Which entries of J can be nonzero, at any point, and which rows or columns may therefore share a pass.

    maps of the nodes ─→ propagation of dependency sets ─→ Pattern ─→ coloring ─→ Coloring ─→ elimination.compressed
                            ├─ index_sets     sets of source elements, each kept once, by id
                            ├─ dependency     an id for each element of an activation
                            └─ known_zeros    masks before a softmax make the sets smaller

In: the linear maps between source and target. Out: the positions ``(rows, columns)`` of the entries, and groups of
rows or columns no two of which share an entry. Why: a J of 1024 rows with 9 entries each takes some 9 passes.
"""
