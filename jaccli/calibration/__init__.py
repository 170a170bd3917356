"""What this machine's operators cost: measured once, kept in the user's cache folder."""

from jaccli.calibration.cache import calibrate, known, load
from jaccli.calibration.figures import Calibration

__all__ = ["Calibration", "calibrate", "known", "load"]
