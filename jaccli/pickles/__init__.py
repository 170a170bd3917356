"""Pickles of ``torch.save``, read without running anything that is in them.

    bytes ──────────→ opcodes ─────────→ stand-ins ───────────→ tensors
    (saved_object)    (reader)           (stand_ins, nesting)   (storages)

``saved_object`` finds the pickles in a file: a zip archive, the older stream format, or a plain pickle. ``reader`` is a
pickle machine whose opcodes can build data and call nothing. The names of classes and functions become ``stand_ins``:
descriptions of tensors and arrays, and objects that keep their arguments. ``nesting`` limits their depth. ``storages``
checks the descriptions of tensors against the bytes in the file, and makes tensors of them.

In: a path or bytes, untrusted. Out: an object of plain containers and stand-ins, and the names of classes that were not
loaded; or a ``RefusedError``. Why: Python's own reader calls what a pickle names.

Only ``storages`` and ``saved_object`` import torch.
"""
