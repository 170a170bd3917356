"""Bad files of every kind that jaccli reads: broken, lying about their size, or made to harm.

Each module holds one family and lists its files in ``FILES``. ``python -m tests.corpus`` builds all of them, gives
them to each command that they concern, and reports exit codes, seconds and peaks of memory.
"""
