"""What a run leaves behind: its folder, its figures, its page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar


@dataclass(frozen=True)
class Outcome:
    """What a run left.

    Attributes:
        folder: holds the files.
        results: what is in its file of figures.
        page: the name of the HTML page in the folder.
    """

    folder: Path
    results: dict[str, Any]
    page: ClassVar[str] = "report.html"

    @property
    def report(self) -> Path:
        """The HTML page."""
        return self.folder / self.page
