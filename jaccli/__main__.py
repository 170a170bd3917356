"""``jaccli`` and ``python -m jaccli``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and leave with its exit code."""
    from jaccli.cli.boundary import run_last
    from jaccli.sinks.standard import discard_messages

    code = run_last(sys.argv[1:])
    discard_messages()
    sys.exit(code)


if __name__ == "__main__":
    main()
