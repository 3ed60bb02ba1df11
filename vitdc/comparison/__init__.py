"""Runs beside each other: what differs, in groups over seeds, and paired differences.

runs        one run, wherever its record lies
groups      the mathematics: groups, paired differences, what the numbers allow to say
finding     what a person calls a run -> its result
revisions   results at Git revisions and in DVC experiments
tables      the comparison as text, Markdown, CSV and JSON

The page is made by vitdc.report.comparison.
"""

from vitdc.comparison.groups import Comparison, Difference, Group, Summary, compare
from vitdc.comparison.runs import SCORES, RunResult

__all__ = ["SCORES", "Comparison", "Difference", "Group", "RunResult", "Summary", "compare"]
