"""``jaccli`` and ``python -m jaccli``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and leave with its exit code."""
    from jaccli.cli.boundary import run_last

    sys.exit(run_last(sys.argv[1:]))


if __name__ == "__main__":
    main()
