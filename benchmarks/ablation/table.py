"""The table of docs/engine.md, of the results of one run or of several."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from ablation.results import Result
from ablation.switch import Switch
from ablation.switches import SWITCHES

HEAD = """\
| part | module | changed | planned, most | mean | first, most | memory, most |
| :-- | :-- | --: | :-- | --: | :-- | :-- |"""


def table(results: Sequence[Result]) -> str:
    """A row for each switch, and under them what went wrong."""
    lines, notes = [HEAD], []
    for name, switch in SWITCHES.items():
        found = [result for result in results if result["switch"] == name]
        if found:
            lines.append(_row(switch, [r for r in found if not {"error", "gap"} & r.keys()]))
            notes += _notes(name, found)
    return "\n".join([*lines, "", *notes])


def _row(switch: Switch, found: Sequence[Result]) -> str:
    planned = _ratios(found, "planned")
    networks = {result["network"] for result in found}
    logs = [math.log(planned.get(network, 1.0)) for network in networks]
    mean = f"{math.exp(statistics.fmean(logs)):.2f}" if logs else "–"
    module = f"`{switch.module}`" if switch.module != "–" else "–"
    cells = [switch.part, module, str(len(planned)), _most(planned), mean]
    return f"| {' | '.join([*cells, _most(_ratios(found, 'first')), _most(_ratios(found, 'memory'))])} |"


def _ratios(found: Sequence[Result], figure: str) -> dict[str, float]:
    """By network, where the figure changes at all; the median of several runs."""
    ratios: dict[str, list[float]] = {}
    for result in found:
        if figure in result:
            ratios.setdefault(result["network"], []).append(result[figure]["ratio"])
    return {network: statistics.median(values) for network, values in ratios.items()}


def _most(ratios: dict[str, float]) -> str:
    if not ratios:
        return "–"
    network = max(ratios, key=lambda name: ratios[name])
    return f"{ratios[network]:.2f} {network}"


def _notes(name: str, found: Sequence[Result]) -> list[str]:
    """Where J differs by more than rounding, and where there is none."""
    notes = []
    for result in found:
        off = max((result[key] for key in ("differs", "first_differs") if key in result), default=0.0)
        if off > 1e-4:
            notes.append(f"- {name}: J of {result['network']} differs by {off:.1e}")
        notes += [f"- {name}: {key} on {result['network']}: {result[key]}" for key in ("gap", "error") if key in result]
    return notes
