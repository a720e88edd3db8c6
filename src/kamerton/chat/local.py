"""Models that are loaded here. Answers of one prompt come token by token; methods that take several passes give theirs
in one piece, with what they tell of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kamerton.base.load import DtypeName
from kamerton.chat.model import Grown, Progress, Reply, clean
from kamerton.chat.telling import seen
from kamerton.inference.growing import GrowingText
from kamerton.inference.sampling import Sampling
from kamerton.methods.history import answer_room, fit_turns
from kamerton.methods.method import Adapted, is_plain
from kamerton.tasks.example import Conversation
from kamerton.together import load_together


class LocalModels:
    """Targets in one memory.

    Args:
        targets: as in `load_together`.
        dtype: data type of bases.
        report: told what is being loaded.
    """

    def __init__(
        self, targets: Sequence[str], *, dtype: DtypeName = "auto", report: Callable[[str], None] = lambda _: None
    ) -> None:
        self._models = load_together(targets, dtype=dtype, report=report)
        self.names = list(self._models)
        self.name = self.names[0]

    @property
    def adapted(self) -> Adapted:
        """The model that answers."""
        return self._models[self.name]

    @property
    def context(self) -> int | None:
        return self.adapted.engine.model.max_length

    @property
    def about(self) -> list[str]:
        return [f"{name}: method {model.method}, {model.base.info}" for name, model in self._models.items()]

    def answer(
        self, conversation: Conversation, sampling: Sampling, reply: Reply, grown: Grown, progress: Progress
    ) -> None:
        asked, reply.dropped = self._kept(conversation, sampling)
        if is_plain(self.adapted):
            self._stream(asked, sampling, reply, grown)
        else:
            self._whole(asked, sampling, reply, grown, progress)

    def prompt(self, conversation: Conversation, sampling: Sampling) -> str:
        adapted = self.adapted
        asked, dropped = self._kept(conversation, sampling)
        prepared = adapted.prepare(asked)
        return seen(
            adapted.renderer.text(prepared), tokens=len(adapted.renderer.prompt(prepared)),
            soft_tokens=adapted.engine.model.soft_tokens, dropped=dropped, several=not is_plain(adapted),
        )  # fmt: skip

    def _kept(self, conversation: Conversation, sampling: Sampling) -> tuple[Conversation, int]:
        return fit_turns(self.adapted, conversation, answer_room(self.adapted, sampling.max_tokens))

    def _stream(self, asked: Conversation, sampling: Sampling, reply: Reply, grown: Grown) -> None:
        engine, prepared = self.adapted.engine, self.adapted.prepare(asked)
        growing, given = GrowingText(engine, sampling), ""
        reply.prompt_tokens, reply.answer_tokens = engine.prompt_tokens(prepared), 0

        def told(_: int, token: int) -> None:
            nonlocal given
            assert reply.answer_tokens is not None
            reply.answer_tokens += 1
            if token in engine.renderer.end_ids:
                return
            piece = growing.add(token, last=False)
            given += piece
            if piece:
                grown(clean(piece))

        (answer,) = engine.generate([prepared], sampling, on_token=told)
        rest = answer.text[len(given) :]  # what could have been the beginning of a stop string
        if rest:
            grown(clean(rest))
        reply.finish = answer.finish

    def _whole(
        self, asked: Conversation, sampling: Sampling, reply: Reply, grown: Grown, progress: Progress
    ) -> None:  # fmt: skip
        def done(count: int, total: int) -> None:
            if total > 1:
                progress(f"{count} of {total} sampled")

        (answer,) = self.adapted.generate([asked], sampling, progress=done)
        reply.prompt_tokens, reply.answer_tokens = answer.prompt_tokens, answer.generated_tokens
        reply.details, reply.finish = answer.details, answer.finish
        if answer.text:
            grown(clean(answer.text))
