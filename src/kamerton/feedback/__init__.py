"""The loop of feedback: answers of a model for people to label, and their labels as preference data.

Through files: `export` samples answers into JSON lines, people fill in empty fields, `merge` puts the labels among
those that were there. Through a store: `FeedbackStore` holds what people said on a page, `from_store` gives it as
preference data, `results_of` says how far they agree and which model is better. A recipe reads the file of preferences.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kamerton.feedback.exporting import Exported, check_export, export
    from kamerton.feedback.merging import Merged, merge
    from kamerton.feedback.preferences import from_store, import_labels
    from kamerton.feedback.results import Results, results_of
    from kamerton.feedback.store import FeedbackStore

__all__ = [
    "Exported", "FeedbackStore", "Merged", "Results", "check_export", "export", "from_store", "import_labels", "merge",
    "results_of",
]  # fmt: skip

_PLACES = {
    "exporting": ("Exported", "check_export", "export"), "merging": ("Merged", "merge"),
    "preferences": ("from_store", "import_labels"), "store": ("FeedbackStore",), "results": ("Results", "results_of"),
}  # fmt: skip


def __getattr__(name: str) -> Any:
    # on first use: sampling answers needs torch, which takes seconds to import, and reading labels does not
    for module, names in _PLACES.items():
        if name in names:
            return getattr(import_module(f"kamerton.feedback.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
