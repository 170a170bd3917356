"""Texts that every folder needs. Imports nothing slow, and no torch.

escape     text from files made harmless: quoted, shortened, without control characters
wording    messages that name parameters, as Python (``max_memory=``) or as flags (``--max-memory``)
sizes      amounts of memory as people write them, to bytes
quantities amounts of memory and of time, and dtypes, as messages show them
"""
