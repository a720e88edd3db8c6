"""The errors that a user can cause, each with its place and its mend.

Everything a person can get wrong (a recipe, a task file, a model folder, a checkpoint, a missing extra) is raised as a
`KamertonError`. The command line prints it as one line and exits with status 2; a traceback is a bug of ours.
"""

from __future__ import annotations

from pathlib import Path


class KamertonError(Exception):
    """A mistake that the user can mend.

    Args:
        message: what is wrong, in one sentence without a final full stop.
        where: the place: a file, `file:line`, a field of the recipe, a column.
        mend: what to do next, as an imperative.

    `str()` of it is always one line: `where: message; mend`.
    """

    def __init__(self, message: str, *, where: str | Path | None = None, mend: str | None = None) -> None:
        self.message = message
        self.where = str(where) if where is not None else None
        self.mend = mend
        super().__init__(self._line())

    def _line(self) -> str:
        line = f"{self.where}: {self.message}" if self.where else self.message
        if self.mend:
            line = f"{line}; {self.mend}"
        # what is quoted may hold half of a surrogate pair, which no terminal takes
        return " ".join(line.split()).encode("utf-8", "backslashreplace").decode()

    def __reduce__(self) -> tuple[object, ...]:
        # keyword-only arguments do not survive pickling by default; cells cross process boundaries
        return (_rebuild, (type(self), self.message, self.where, self.mend))


def _rebuild(kind: type[KamertonError], message: str, where: str | None, mend: str | None) -> KamertonError:
    return kind(message, where=where, mend=mend)


class RecipeError(KamertonError):
    """A recipe that cannot be read, or that asks for something that does not exist."""


class TaskError(KamertonError):
    """Examples that cannot be read, or that do not fit their task."""


class ModelError(KamertonError):
    """A base, adapter or checkpoint that cannot be loaded."""


class RewardError(KamertonError):
    """A reward that gives no number for an answer."""


class BudgetError(KamertonError):
    """A budget under which a method cannot be trained."""


class ResourceError(KamertonError):
    """Something that the machine has too little of: memory, or room on a disk."""


class MissingExtra(KamertonError):
    """An optional dependency that is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed", mend=f"run: pip install 'kamerton[{extra}]'")

    def __reduce__(self) -> tuple[object, ...]:
        return (KamertonError, (str(self),))
