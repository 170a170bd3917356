"""Bounds for files from strangers, kept by every reader before it works.

    path ─→ reading (whatever goes wrong is the file's fault: exit 3, or 5 for memory)
              ├─ archives    the directory of a zip file, its size known before it is read
              ├─ documents   JSON, its memory estimated before it is parsed
              ├─ budget      what the opcodes of a pickle may take
              └─ memory      bytes that the content unfolds to, against its file and ``max_memory``

In: bytes that nobody vouches for. Out: the same bytes, or a ``RefusedError`` or ``ResourceError`` that names the
file. A bound is a count or a size and never a time, so that a file is read everywhere or nowhere.
"""
