"""The file of results: written after each switch, so that a run that was broken off can go on."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Result = dict[str, Any]


@dataclass
class Results:
    """What was measured so far.

    Args:
        about: on what, and with how many threads.
        path: of the file; None for none.
        found: one for each network and switch.
    """

    about: dict[str, Any]
    path: Path | None = None
    found: list[Result] = field(default_factory=list)

    @classmethod
    def resumed(cls, about: dict[str, Any], path: Path | None) -> Results:
        """With what the file has already.

        Raises:
            ValueError: that was measured otherwise.
        """
        results = cls(about, path)
        if path is not None and path.exists():
            before = json.loads(path.read_text())
            for key in ("torch", "threads"):
                if before["about"][key] != about[key]:
                    raise ValueError(f"{path}: {key} {before['about'][key]}, now {about[key]}: take another file")
            results.found = before["results"]
        return results

    def missing(self, network: str, switches: Iterable[str]) -> list[str]:
        """Switches without a result; those that failed are tried again."""
        done = {r["switch"] for r in self.found if r["network"] == network and "error" not in r}
        return [switch for switch in switches if switch not in done]

    def add(self, result: Result) -> None:
        """Keep a result in the place of an earlier one, and write the file."""
        place = (result["network"], result["switch"])
        self.found = [r for r in self.found if (r["network"], r["switch"]) != place] + [result]
        if self.path is not None:
            new = self.path.with_name(self.path.name + ".new")
            new.write_text(json.dumps({"about": self.about, "results": self.found}, indent=1) + "\n")
            new.replace(self.path)


def read(paths: Iterable[Path]) -> list[Result]:
    """All results of several files."""
    return [result for path in paths for result in json.loads(path.read_text())["results"]]
