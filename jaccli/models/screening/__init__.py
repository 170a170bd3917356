"""What an operator in a file from a stranger may be, and what arguments it may get. Both graph readers ask here.

    before a file runs   ─→ operator_names (operator_lists)   the operator is on the list, or the file is refused
    before each call     ─→ argument_checks                   sizes, indices and pivots that a kernel does not check
                         └─ enumerations                      dtypes, layouts and memory formats given as numbers

In: an operator's schema, later its arguments. Out: the operator, behind a check where it needs one, or a
``RefusedError``. Why: many of PyTorch's operators touch files, or crash the process on arguments that no
real network has; what is on no list is refused, so a later PyTorch adds nothing by itself.
"""
