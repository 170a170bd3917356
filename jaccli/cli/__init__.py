"""The command line: one short file a command, no numerics, no torch before it is needed."""
