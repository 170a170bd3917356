"""All parts that can be left out, by name, in the order of the table.

No replacement alone leaves out: constants computed once and dead code (programs fail without), 1 x 1 convolutions as
matrices (part of the rule), the order of operands in contractions and of sums of blocks (chosen within a function),
guards (J of another branch would be wrong, not slower). Cells of recurrent layers are not here either: accelerators
alone run them as one kernel.
"""

from __future__ import annotations

from ablation.map_switches import MAP_SWITCHES
from ablation.plan_switches import CALL_SWITCHES, RACE_SWITCHES, SINGLE_SWITCHES
from ablation.program_switches import PROGRAM_SWITCHES
from ablation.search_switches import SEARCH_SWITCHES

SWITCHES = RACE_SWITCHES | PROGRAM_SWITCHES | SEARCH_SWITCHES | MAP_SWITCHES | CALL_SWITCHES | SINGLE_SWITCHES
