"""A chat under way: asks, shows answers as they grow, keeps what was said. What begins with a slash is a command."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from kamerton.chat.history import History
from kamerton.chat.model import ChatModel, Reply
from kamerton.chat.screen import Screen, Waiting
from kamerton.chat.telling import told
from kamerton.errors import KamertonError
from kamerton.recipe_errors import nearest
from kamerton.sampling import Sampling
from kamerton.tasks.example import Message

Command = Callable[["Session", str], None]


class Session:
    """A conversation with models.

    Args:
        models: who answers.
        screen: where it is read and shown.
        sampling: how answers are sampled.
        system: the system prompt.
        commands: what a command does, by its name without the slash.

    Attributes:
        history: what was said; `before`: what was there before it was put away, until the next question.
        last: the last answer; `answered`, `written`: answers, and tokens written where that is told.
        open: False once it is to end.
    """

    def __init__(
        self, models: ChatModel, screen: Screen, sampling: Sampling, system: str | None, commands: dict[str, Command]
    ) -> None:
        self.models, self.screen, self.sampling, self.commands = models, screen, sampling, commands
        self.history = History(system)
        self.before: History | None = None
        self.last: Reply | None = None
        self.answered = self.written = 0
        self.open = True
        self._dropped = self._retries = 0

    def run(self) -> int:
        """Until the end of the input or `/quit`; returns the number of mistakes that were shown."""
        interrupted = False
        while self.open:
            try:
                text = self.screen.read()
            except EOFError:
                if self.screen.interactive:
                    self.screen.show("")
                break
            except KeyboardInterrupt:
                if not self.screen.interactive:
                    raise
                self.screen.show("")
                if interrupted:
                    break
                interrupted = True
                self.screen.note("Ctrl-C again, Ctrl-D or /quit leaves the chat")
                continue
            interrupted = False
            try:
                self.take(text)
            except KamertonError as error:
                self.screen.error(str(error))
            except KeyboardInterrupt:
                if not self.screen.interactive:
                    raise
                self.screen.note("(stopped)")
        return self.screen.mistakes

    def take(self, text: str) -> None:
        """A message or a command."""
        if text.startswith("/"):
            name, _, rest = text[1:].partition(" ")
            if name not in self.commands:
                near = nearest(name, self.commands)
                mend = f"did you mean /{near}?" if near else "/help lists them."
                raise KamertonError(f"no command /{name}", mend=f"{mend} A space before the slash sends it as it is")
            self.commands[name](self, rest.strip())
        elif text.strip():
            self._retries = 0
            self.ask(text.strip())

    def ask(self, question: str) -> None:
        """Ask and show the answer; both are kept if there is one."""
        self.before = None
        reply = Reply()
        asked = self.history.conversation(question)
        # the same seed would give the same answer to the same question
        sampling = replace(self.sampling, seed=self.sampling.seed + self._retries)
        try:
            self._answer(asked, sampling, reply)
        except KeyboardInterrupt:
            if not self.screen.interactive:
                raise
            reply.finish = "stopped"
        except KamertonError as error:
            self.screen.error(str(error))
            if not reply.text:
                return
        self.last = reply
        self.answered += 1
        self.written += reply.answer_tokens or 0
        for line in told(reply, sampling):
            self.screen.note(line)
        if not reply.text.strip():
            self.screen.note("(no answer: the question is not kept)")
            return
        self.history.turns += [Message("user", question), Message("assistant", reply.text)]

    def retry(self) -> None:
        """Ask the last question again, with another seed; where nothing comes of it, the answer from before stays."""
        before = list(self.history.turns)
        question = self.history.take_back()
        if question is None:
            raise KamertonError("nothing was asked yet", mend="ask something first")
        left = len(self.history.turns)
        self._retries += 1
        self.ask(question)
        if len(self.history.turns) == left:
            self.history.turns = before
            self.screen.note("(what was said before stays)")

    def replace(self, history: History) -> None:
        """Begin with another conversation; the one before can be brought back until something is asked."""
        self.before = self.history if self.history.turns else None
        self.history = history
        self._dropped = self._retries = 0

    def _answer(self, asked: tuple[Message, ...], sampling: Sampling, reply: Reply) -> None:
        started = time.perf_counter()

        with self.screen.waiting("…") as waiting:
            try:
                self.models.answer(asked, sampling, reply, self._grown(reply, waiting, started), waiting.say)
            finally:
                reply.seconds = time.perf_counter() - started
                waiting.over()
                if reply.text:
                    self.screen.piece("" if reply.text.endswith("\n") else "\n")
                else:
                    self._tell_dropped(reply)

    def _grown(self, reply: Reply, waiting: Waiting, started: float) -> Callable[[str], None]:
        def grown(text: str) -> None:
            if reply.first is None:
                reply.first = time.perf_counter() - started
                waiting.over()
                self._tell_dropped(reply)
            reply.text += text
            reply.pieces += 1
            self.screen.piece(text)

        return grown

    def _tell_dropped(self, reply: Reply) -> None:
        for note in reply.notes:
            self.screen.note(f"({note})")
        reply.notes.clear()
        if reply.dropped != self._dropped:
            which = "the oldest turn no longer fits" if reply.dropped == 1 else (
                f"the {reply.dropped} oldest turns no longer fit"
            )  # fmt: skip
            of = f" the model's {self.models.context:,} tokens" if self.models.context else ""
            if reply.dropped:
                self.screen.note(f"({which}{of}: it is asked without {'it' if reply.dropped == 1 else 'them'})")
            self._dropped = reply.dropped
