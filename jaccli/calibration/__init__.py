"""What this machine's operators cost: measured once, kept in the user's cache folder."""

from jaccli.calibration.cache import calibrate, known, load
from jaccli.calibration.figures import Calibration
from jaccli.calibration.typical import TYPICAL

__all__ = ["TYPICAL", "Calibration", "calibrate", "known", "load"]
