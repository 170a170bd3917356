"""INPUT → samples: what a user writes after ``-i``, ``--samples`` and ``--arg``, as values and then as tensors.

In:  the text after ``-i``, ``--samples`` or ``--arg``, and what it leads to: a file, a folder, standard input.
Out: a tensor ``(batch, …)``.
Why: a file may be of any kind, and by anybody: it is told by its content, and nothing in it is executed.

    text ─→ spec       FileInput, FolderInput, StdinInput, RandomInput; Selection; needs no torch
              └─→ load     a tensor (batch, …), by what the source turns out to be:
                    ├─ source       a file or standard input, and the kind of its content
                    ├─ arrays       npy, without pickle
                    ├─ containers   one array of several: npz, safetensors, pt
                    ├─ table        csv and tsv, one sample a row
                    └─ images       a folder of them, one sample a file

A file is checked for its size before it is read. ``expected`` holds what errors say.
"""
