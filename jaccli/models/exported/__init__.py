"""``torch.export`` archives without ``torch.export``: read, checked and run operator by operator.

    file ─→ archive (zip, payload: tensors) ─→ parse (arguments, container_trees, module_stacks) ─→ ExportedCode
            an ``ExportedProgram`` or the module made of one ─→ from_fx ──────────────────────────────↑
                                                                                                      ↓
            ProgramRun (one pass) ←─ analyse (module_calls, inplace_writes, last uses) ←─ ExportedModel (binding)

In: a file, an ``ExportedProgram``, or its ``module()``. Out: an ``ExportedModel`` (an ``nn.Module``) and around it an
``ExportedNetwork``. ``torch.export.load`` falls back to pickle on any error and evaluates text from the file, so
nothing of it is used here: tensors are read as raw bytes, the graph is data, and operators come from a list.
"""
