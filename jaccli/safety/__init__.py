"""Limits for untrusted files, checked by every reader before it works.

    path ─→ reading (any error in it is reported as the file's: exit 3, or 5 for lack of memory)
              ├─ archives    zip: the size of the directory, before it is read
              ├─ documents   JSON: the memory that it takes, before it is parsed
              ├─ headers     safetensors: the length and the entries of the header, before it is parsed
              ├─ budget      pickle: operations, copies and names, while it is read
              └─ memory      all: the unpacked size, compared with that in the file and with ``max_memory``

In: bytes from an unknown source. Out: their content, or a ``RefusedError`` or ``ResourceError`` that names the file.
Why: a small file can claim any memory. A limit is a count or a size and never a time, so that a file is read on every
machine or on none.
"""
