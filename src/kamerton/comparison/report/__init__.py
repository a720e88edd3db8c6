"""The report of a comparison folder: one HTML page, `results.json`, CSV, Markdown and LaTeX tables.

`write_report` reads only what the folder holds (see comparison/verdict.py for the rules), finished or not, so it can be
called after every cell and long after the run.
"""

from kamerton.comparison.report.data import Comparison, load_comparison
from kamerton.comparison.report.results import results, results_without_times
from kamerton.comparison.report.write import write_report

__all__ = ["Comparison", "load_comparison", "results", "results_without_times", "write_report"]
