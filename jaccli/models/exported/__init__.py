"""``torch.export`` archives without ``torch.export``: read, checked and run operator by operator.

    file ─→ load ─→ archive (zip, payload: tensors) ─→ parse (arguments, container_trees, ─→ ExportedCode (code)
                                                              operators, module_stacks)          ↑   │
            an ``ExportedProgram`` or the module made of one ─→ from_fx ─────────────────────────┘   ↓
    network ─→ interpreter: one pass, with graphs run by control ←─ module_calls, ←─ ExportedModel (model, binding)
               training_mode: what to warn of                       inplace_writes

In: a file, an ``ExportedProgram``, or its ``module()``. Out: an ``ExportedModel`` (an ``nn.Module``) and around it an
``ExportedNetwork``. Why: ``torch.export.load`` falls back to pickle on any error and evaluates text from the file, so
nothing of it is used here: tensors are read as raw bytes, the graph is data, and operators come from a list.
"""
