"""Labels of people → preference data: checked line by line, merged with what was there, written whole or not at all.

The same question with the same answers is one label: the newer one wins. Newer is what comes later: files in the order
given, lines in the order of their file, and all of them after what the merged file has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kamerton.errors import KamertonError
from kamerton.feedback.lines import judged_of, label_of, read_lines
from kamerton.files import write_jsonl
from kamerton.tasks.readers import shown


@dataclass(frozen=True)
class Merged:
    """What a merge did.

    Attributes:
        total: questions in the file now.
        new, changed, same: labels that were added, that replaced an older one, and that were there already.
        unlabelled: lines without a label, left out.
        repeated: labels of the merged file that a later line of it replaced.
    """

    total: int
    new: int
    changed: int
    same: int
    unlabelled: int
    repeated: int


def merge(files: Sequence[str | Path], into: str | Path) -> Merged:
    """Put the labels of files that `export` wrote and people filled in into a file of preferences.

    Raises:
        KamertonError: a line is broken (nothing is written then), or there is no label at all.
    """
    target = Path(into)
    for file in files:
        if Path(file).resolve() == target.resolve():
            mend = "name another file with --into"
            raise KamertonError("is to be read and written", where=shown(Path(file)), mend=mend)
    before = [judged_of(line) for line in read_lines(target)] if target.exists() else []
    kept = {one.key: one for one in before}
    repeated = len(before) - len(kept)
    new = changed = same = unlabelled = 0
    for file in files:
        for line in read_lines(Path(file)):
            label = label_of(line)
            if label is None:
                unlabelled += 1
                continue
            old = kept.get(label.key)
            if old is None:
                new += 1
            elif old.graded == label.graded:
                same += 1
            else:
                changed += 1
            kept[label.key] = label
    if not new + changed + same:
        mend = 'fill in "chosen" (the number of the best answer, from 0) or "scores" in some of them'
        raise KamertonError(f"none of the {unlabelled} lines has a label", where=shown(Path(files[0])), mend=mend)
    if new or changed or repeated:
        write_jsonl(target, [one.record() for one in kept.values()])
    return Merged(len(kept), new, changed, same, unlabelled, repeated)
