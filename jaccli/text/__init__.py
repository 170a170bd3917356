"""Texts that every folder needs. Imports nothing slow, and no torch.

In:  numbers, names, and text from files and users.
Out: text for messages; an amount of memory, from text.
Why: every folder words its messages alike, and no text from a file can steer a terminal.

escape     text from files made harmless: quoted, shortened, without control characters
wording    messages that name parameters, as Python (``max_memory=``) or as flags (``--max-memory``)
sizes      amounts of memory as people write them, to bytes
quantities amounts of memory and of time, and dtypes, as messages show them
"""
