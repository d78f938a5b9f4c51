"""The report of a run: `report.html`, one file that needs no network, no script and no other file.

`write` looks at the held-out rows through the network and keeps what it found as `report.json`; `draw` makes the page
from the JSON files of the run folder alone, in milliseconds, so whatever adds such a file (parity, variants, an attack)
draws it again. `plots` are the PNG files beside it.
"""

from forwardpass_training.report.page import REPORT_FILE, draw
from forwardpass_training.report.plots import save_confusion, save_curves
from forwardpass_training.report.write import write

__all__ = ["REPORT_FILE", "draw", "save_confusion", "save_curves", "write"]
