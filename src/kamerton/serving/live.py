"""Answers for labelling, sampled from models beside the page: one thread, a few prompts at a time.

Each prompt's answers go into the store as soon as all models have given theirs. A store remembers what is in it, so a
server that is started again goes on with the prompts that are left.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from kamerton.errors import KamertonError
from kamerton.feedback.exporting import model_fingerprint
from kamerton.feedback.records import Candidate, Item, make_item
from kamerton.feedback.store import FeedbackStore
from kamerton.inference import Sampling
from kamerton.methods.method import Adapted
from kamerton.tasks.example import Conversation, fingerprint

CHUNK = 4
"""Prompts that are answered at once: the first questions come soon, and stopping does not take long."""


class Sampler:
    """Fills a store with answers of models.

    Args:
        store: the store.
        models: models by the names that results show.
        prompts: the conversations; those in the store already are left out.
        sampling: how; `n` answers of each model.

    Attributes:
        several: each prompt gets more than one answer.
        done, total: prompts that are answered, and all of them; `cut`: prompts that a model saw only in part.

    Raises:
        KamertonError: several answers of a model at temperature 0.
    """

    def __init__(
        self, store: FeedbackStore, models: Mapping[str, Adapted], prompts: Sequence[Conversation], sampling: Sampling
    ) -> None:
        if sampling.n > 1 and sampling.temperature == 0:
            raise KamertonError("temperature 0 gives the same answer each time", mend="take one such as 0.8 or 1.0")
        self._store, self._models, self._sampling = store, models, sampling
        settings = {name: value for name, value in asdict(sampling).items() if value not in (None, ())}
        self._sampled = {name: {"model": model_fingerprint(model)[:16], **settings} for name, model in models.items()}
        there = store.keys()
        self._left = [(key, p) for p in prompts if (key := self._key(p)) not in there]
        self.total, self.done, self.cut = len(prompts), len(prompts) - len(self._left), 0
        self.several = len(models) * sampling.n > 1
        self.error: str | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampling", daemon=True)

    def _key(self, prompt: Conversation) -> str:
        said = [[turn.role, turn.content] for turn in prompt]
        return fingerprint(["sampled", said, sorted(self._sampled.items())])[:32]

    def start(self) -> None:
        """Begin, in a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """Stop after the prompts that are being answered."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def state(self) -> dict[str, Any]:
        """How far it is; `error` in words where it ended early."""
        return {"done": self.done, "total": self.total, "error": self.error}

    def _run(self) -> None:
        try:
            for start in range(0, len(self._left), CHUNK):
                if self._stop.is_set():
                    return
                part = self._left[start : start + CHUNK]
                self._store.add(self._items(part))
                self.done += len(part)
        except Exception as error:  # the page says so; what was sampled is kept
            self.error = str(error) if isinstance(error, KamertonError) else f"{type(error).__name__}: {error}"

    def _items(self, part: Sequence[tuple[str, Conversation]]) -> list[Item]:
        answers: list[list[Candidate]] = [[] for _ in part]
        for name, model in self._models.items():
            asked = [model.shorten(prompt, self._sampling.max_tokens) for _, prompt in part]
            self.cut += sum(cut for _, cut in asked)
            said = model.generate([short for short, _ in asked], replace(self._sampling))
            n = self._sampling.n
            for i, found in enumerate(answers):
                for one in said[i * n : (i + 1) * n]:
                    # an empty answer is an answer too, and people should see that it is
                    about = {"sampled": self._sampled[name], "cut": bool(asked[i][1])}
                    found.append(Candidate(one.text.strip() or "(empty)", name, about))
        return [
            make_item(prompt, found, name=f"s{key[:8]}", key=key)
            for (key, prompt), found in zip(part, answers, strict=True)
        ]
