"""The loop of feedback: answers of a model for people to label, and their labels as preference data.

`export` samples answers into a file of JSON lines, people fill its empty fields, `merge` puts the labels among those
that were there. A recipe reads the merged file (shape `preference`).
"""

from __future__ import annotations

from kamerton.feedback.exporting import Exported, check_export, export
from kamerton.feedback.merging import Merged, merge

__all__ = ["Exported", "Merged", "check_export", "export", "merge"]
