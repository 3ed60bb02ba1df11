"""The report of a finished run: figures and one self-contained HTML page. Knows no path.

Fill a `ReportData`; ask `pictured_images` which images to decode; then `build_figures` and
`render_page`.
"""

from vitdc.report.data import (
    Decoded,
    ReportData,
    Snapshot,
    choose_map_indices,
    map_coordinates,
    pictured_images,
)
from vitdc.report.figures import build_figures, figure_png
from vitdc.report.page import render_page

__all__ = [
    "Decoded",
    "ReportData",
    "Snapshot",
    "build_figures",
    "choose_map_indices",
    "figure_png",
    "map_coordinates",
    "pictured_images",
    "render_page",
]
