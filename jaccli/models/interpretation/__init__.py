"""What both readers need to run a graph operator by operator, outside of PyTorch's own executors.

    node of a graph ─→ overloads            its name ─→ an operator of this PyTorch
                       replaced_operators   those that run another way than the file says, and why
                       training_flags       those that have a training mode, or draw random numbers
    before a run    ─→ last_use             which values can be let go after which node
                       alias_sets           which values may share memory, so that writes in place can be made safe
    at a module     ─→ module_calls         reports to a tap, calls counted
                       nested               values in lists, tuples and dicts; layouts of a module's results

In: names, nodes and values in the terms of ``models.torchscript`` or ``models.exported``. Out: answers in the same
terms. Why: both readers meet the same operators; nothing here knows either file format.
"""
