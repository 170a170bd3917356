"""``torch.export`` archives without ``torch.export``: read, checked and run operator by operator.

    archive ─→ parse ─→ Program ─→ analyse (module calls, in-place operators) ─→ ProgramRun
                          ↑
                       from_fx (an ``ExportedProgram`` or the module made of one)

``torch.export.load`` falls back to pickle on any error and evaluates text from the file, so nothing
of it is used here: tensors are read as raw bytes, the graph is data, and operators come from a list.
"""
