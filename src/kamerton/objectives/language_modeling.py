"""Language modelling: the negative log-likelihood of every token of plain texts (continued pretraining).

The model goes on with what it was pretrained on, in the user's own field (Gururangan et al. 2020, arXiv 2004.10964). No
template is applied and nothing is an answer; a text is followed by the end token. The texts are those of the option
`texts`, or else the task's own examples, written as plain text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kamerton.base.load import Base
from kamerton.errors import TaskError
from kamerton.objectives.next_token import NextToken
from kamerton.objectives.texts import example_text, hold_out, pieces, read_texts, skipped_note
from kamerton.rendering import Rendered
from kamerton.tasks.example import Task
from kamerton.tasks.halves import halves_note, replace_halves


class LanguageModeling(NextToken):
    """Next-token loss on every token of plain texts."""

    name = "language-modeling"

    @classmethod
    def build(cls, base: Base, task: Task, options: Any, *, limit: int | None, seed: int) -> LanguageModeling:
        """For a base, a task and the options of a trained method; `options.texts` names a file or folder of texts.

        Raises:
            TaskError: no texts.
        """
        length = min(n for n in (limit, options.max_tokens) if n is not None)
        if length < 2:
            raise TaskError("a row of text needs two tokens", where="limit", mend="raise limit or max_tokens")
        halves = 0
        if options.texts is not None:
            read, halves = replace_halves(read_texts(options.texts))
            texts = [pieces(base.renderer, text, length) for text in read]
            train, held_out = hold_out(texts)
        else:
            if not task.train:
                raise TaskError("there are no training examples", mend="give a train split, or the option texts")
            texts = [pieces(base.renderer, example_text(e), length) for e in task.train]
            train = [row for rows in texts for row in rows]
            held_out = [row for e in task.validation for row in pieces(base.renderer, example_text(e), length)]
        out = cls(train, held_out, batch_size=options.batch_size, max_tokens=options.max_tokens, seed=seed)
        if halves:
            out.notes.append(halves_note(halves, str(options.texts)))
        if options.texts is not None:
            out.notes += skipped_note(options.texts)
        out.notes += _notes(texts, train, held_out, length, of_files=options.texts is not None)
        return out


def _notes(
    texts: Sequence[list[Rendered]], train: Sequence[Rendered], held_out: Sequence[Rendered], length: int, *,
    of_files: bool,
) -> list[str]:  # fmt: skip
    notes = []
    long = [rows for rows in texts if len(rows) > 1]
    if long:
        rows = sum(map(len, long))
        notes.append(f"{len(long)} of {len(texts)} texts are longer than {length} tokens and are read as {rows} pieces")
    if of_files:
        kept = "no text is left for validation" if not held_out else f"{len(held_out)} pieces are held out"
        notes.append(f"{len(texts)} texts: {len(train)} pieces to learn from, {kept}")
    return notes
