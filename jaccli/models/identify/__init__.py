"""What a user means by MODEL, found out without torch and without running code in the file.

    MODEL ─→ import_spec   package.module:callable or file.py:callable: the user's own code
         └─→ file_key      FILE[KEY]: a file, and a key in it
               └─→ file_kind    its kind, by content: torchscript, exported, safetensors or checkpoint
                     └─→ not_models   what other files are, and what to give instead

In: text. Out: a file with its kind and key, or the object that a SPEC names; else a ``UsageError`` or ``RefusedError``
that says what the file is.
Why: a name or an ending can lie, and a wrong MODEL is answered at once, before torch is imported.
"""
