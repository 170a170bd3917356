"""How fast this machine runs torch's operators: measured once, and kept in the user's cache folder.

    measure ─→ timing ─→ figures.Calibration ─→ cache ─→ seconds of an operator, predicted
    (operators) (seconds)  (rates by size)      (a JSON file per machine)

In: a device, with torch's present number of threads. Out: a ``Calibration``, which predicts the seconds of products,
convolutions and elementwise operators. Where nothing was measured, ``typical.TYPICAL`` has those of a common machine.
Why: which elimination order is fastest depends on the machine, and timing each candidate would take longer than J.
"""

from jaccli.calibration.cache import calibrate, load, stored_or_typical
from jaccli.calibration.figures import Calibration
from jaccli.calibration.typical import TYPICAL

__all__ = ["TYPICAL", "Calibration", "calibrate", "load", "stored_or_typical"]
