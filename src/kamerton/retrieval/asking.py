"""Questions asked with what was found: numbered passages with their sources in front of the question.

As many passages as fit: where the model's positions run out, the worst are left away, never cut. What is searched for
is what the user said last.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kamerton.rendering import Renderer
from kamerton.retrieval.documents import Document, DocumentError, Part, find
from kamerton.retrieval.encoder import load_encoder
from kamerton.retrieval.hits import Hit
from kamerton.retrieval.index import How, PassageIndex
from kamerton.retrieval.upkeep import Watch, add, put
from kamerton.tasks.example import Conversation, Example

EXAMPLES = "train"
"""Sources of solved examples are `train#` and their id."""
KEPT = 20_000
"""Questions whose passages are kept in memory."""


def question_of(conversation: Conversation) -> str:
    """What the user said last."""
    return next((m.content for m in reversed(conversation) if m.role == "user"), "")


def with_passages(conversation: Conversation, hits: Sequence[Hit]) -> Conversation:
    """Put numbered passages in front of what the user said last."""
    if not hits:
        return conversation
    listed = "\n\n".join(f"[{n}] {hit.place}\n{hit.passage.text}" for n, hit in enumerate(hits, start=1))
    last = max((i for i, m in enumerate(conversation) if m.role == "user"), default=None)
    if last is None:
        return conversation
    asked = replace(conversation[last], content=f"{listed}\n\n{conversation[last].content}")
    return (*conversation[:last], asked, *conversation[last + 1 :])


def cited(hits: Sequence[Hit]) -> list[dict[str, Any]]:
    """The sources of an answer, for its details."""
    return [
        {
            "source": hit.source, "place": hit.place, "page": hit.passage.page, "number": hit.passage.number,
            "score": round(hit.score, 6), "text": hit.passage.text,
        }
        for hit in hits
    ]  # fmt: skip


def holds(text: str, answers: Sequence[str]) -> bool:
    """Whether a passage holds an accepted answer: its words in a row, whatever their case (Karpukhin et al. 2020)."""
    row = f" {' '.join(_words(text))} "
    return any(words and f" {' '.join(words)} " in row for words in map(_words, answers))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


class Asker:
    """Finds passages for conversations and puts them in front.

    Args:
        index: the index.
        renderer: counts the tokens of a prompt.
        count: passages in a prompt, at most.
        how: the search.
        room: the longest prompt in tokens; None where the model has no limit.
    """

    def __init__(self, index: PassageIndex, renderer: Renderer, *, count: int, how: How, room: int | None) -> None:
        self.index, self.renderer, self.count, self.how, self.room = index, renderer, count, how, room
        self._found: dict[str, list[Hit]] = {}
        self._version = -1

    def look_up(self, questions: Sequence[str]) -> None:
        """Search for many questions at once; what is known is kept as long as the index does not change."""
        if self._version != self.index.version or len(self._found) > KEPT:
            self._found.clear()
            self._version = self.index.version
        new = [q for q in dict.fromkeys(questions) if q not in self._found]
        if new:
            # one more than is asked for: a question in training is not shown its own answer
            self._found.update(zip(new, self.index.search_all(new, self.count + 1, self.how), strict=True))

    def find(self, conversation: Conversation, without: str = "") -> list[Hit]:
        """The passages for a conversation, best first, but for those of the source `without`."""
        question = question_of(conversation)
        self.look_up([question])
        return [hit for hit in self._found[question] if hit.source != without][: self.count]

    def put(self, conversation: Conversation, without: str = "") -> tuple[Conversation, list[Hit]]:
        """The conversation with as many passages as fit, and these."""
        return fitting(self.renderer, conversation, self.find(conversation, without), self.room)


def fitting(
    renderer: Renderer, conversation: Conversation, hits: Sequence[Hit], room: int | None
) -> tuple[Conversation, list[Hit]]:
    """A conversation with as many of the best passages as leave the prompt at most `room` tokens, and these."""
    kept = list(hits)
    asked = with_passages(conversation, kept)
    while kept and room is not None and len(renderer.prompt(asked)) > room:
        kept.pop()
        asked = with_passages(conversation, kept)
    return asked, kept


def example_source(example_id: str) -> str:
    """The source of a solved example."""
    return f"{EXAMPLES}#{example_id}"


def build(
    folder: Path, documents: Sequence[str], examples: Sequence[Example], *, encoder: str, watch: Watch | None = None
) -> tuple[PassageIndex, list[str]]:  # fmt: skip
    """An index of its own for a method: of documents, or, where there are none, of solved examples.

    Args:
        folder: of the index; what a stopped run left there is gone on with, what another one left is replaced.
        documents: files and folders.
        examples: used where `documents` is empty: each question with its answer is a document (REINA,
            arXiv 2203.08773).

    Returns:
        The index, and a note for everything that was passed over.
    """
    loaded = load_encoder(encoder)
    try:
        index = PassageIndex.open(folder, loaded)
    except DocumentError:  # none is there, or another encoder made it, or it is damaged
        shutil.rmtree(folder, ignore_errors=True)
        index = PassageIndex.create(folder, encoder=loaded)
    wanted = {f.as_posix() for f in find(documents).files} or {example_source(e.id) for e in examples}
    index.remove([e.source for e in index.entries() if e.source not in wanted])
    if documents:
        outcome = add(index, documents, watch=watch)
        return index, [*(f"passed over: {line}" for line in outcome.failed), *([outcome.note] if outcome.note else [])]
    solved = [
        Document(example_source(e.id), "", (Part(f"{question_of(e.messages)}\nAnswer: {e.answers[0]}"),))
        for e in examples
    ]
    if not solved:
        raise DocumentError("there are no documents", where=folder, mend="name an index, documents, or a train split")
    put(index, solved, watch=watch)
    return index, []
