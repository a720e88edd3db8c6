"""What a method is, and what it returns: `Method.fit` turns a base and a task into an `Adapted`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

from kamerton.base.load import Base
from kamerton.base.model import LanguageModel
from kamerton.files import write_json
from kamerton.inference import Answer, Engine, Sampling
from kamerton.rendering import Renderer
from kamerton.tasks.example import Conversation, Example, Task, answered
from kamerton.training import Budget, Progress
from kamerton.tuning.parameterisation import Options, Tuned

Prepare = Callable[[Conversation], Conversation]
Report = Callable[[str, float, str], None]
"""Called with a stage's name, its share done (0 … 1) and a few words."""


def _say_nothing(stage: str, share: float, text: str) -> None:
    """The report of a run that nobody watches."""


def _see_nothing(stage: str, progress: Progress) -> None:
    """As `_say_nothing`, of training steps."""


@dataclass
class Run:
    """Where and how one fit happens.

    Attributes:
        folder: for checkpoints; a fit that was stopped goes on from there.
        seed: of everything random.
        report: told about progress.
        watch: told about every training step, with the name of its stage.
        max_batch_tokens: bound on tokens held at once.
        trackers: names of accelerate's trackers.
        until: pause training at this share of its schedule (a method that cannot pause trains to the end); a later fit
            in the same folder goes on from there, and ends as if it had never paused.
        starts: a folder for supervised starts that several fits share; none: each trains its own.
    """

    folder: Path
    seed: int = 0
    report: Report = _say_nothing
    max_batch_tokens: int = 8192
    trackers: tuple[str, ...] = ()
    until: float = 1.0
    watch: Callable[[str, Progress], None] = _see_nothing
    starts: Path | None = None


@dataclass(frozen=True)
class Finding:
    """What a method shows a reader of the report beside its answers: a small table, or curves.

    Attributes:
        title: what it is about.
        columns: names of the columns.
        rows: as many values each; text or numbers.
        curve: draw it: the first column is x, all others are y (None: no point there).
        note: how to read it.
        levels: of a curve, lines across the plot that do not change (the edges of a band), by name.
        texts: its cells are texts of some length: the table takes the page's width and keeps their line breaks.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    curve: bool = False
    note: str = ""
    levels: tuple[tuple[str, float], ...] = ()
    texts: bool = False


@dataclass
class FitRecord:
    """What a fit did and cost.

    Attributes:
        chosen: hyperparameters that validation chose; `search`: what was tried.
        learning_rate: the peak that was used, where one was.
        seconds, tokens, flops: spent on training, the search included.
        curve: learning curve of the run that was kept.
        trainable_parameters: numbers that were trained.
        notes: what the user should know.
        findings: what a reader of the report should see; `marks`: short words beside the method's name ("fragile").
        finished: False where the run asked for a pause and training is not at its end; `expected_flops`: what the whole
            of it will have taken then, about.
    """

    chosen: dict[str, Any] = field(default_factory=dict)
    search: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    tokens: int = 0
    flops: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)
    trainable_parameters: int = 0
    notes: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    marks: list[str] = field(default_factory=list)
    learning_rate: float | None = None
    finished: bool = True
    expected_flops: float = 0.0


class Adapted:
    """An adapted model: what evaluation, chat and serving see. Also the untouched base.

    Args:
        base: the base it was made from.
        model: the model with whatever is attached to it.
        method, options: what made it.
        prepare: what the method does to a conversation before it is asked (adds shots).
        tuned: the trained parameters, None for methods that train nothing.
        state: what `load` needs beside trained parameters, as JSON.
    """

    def __init__(
        self,
        base: Base,
        model: LanguageModel,
        *,
        method: str,
        options: Options,
        prepare: Prepare | None = None,
        tuned: Tuned | None = None,
        state: dict[str, Any] | None = None,
        record: FitRecord | None = None,
        max_batch_tokens: int = 8192,
    ) -> None:
        self.base, self.method, self.options = base, method, options
        self.engine = Engine(model, base.renderer, max_batch_tokens=max_batch_tokens)
        self.prepare: Prepare = prepare or (lambda conversation: conversation)
        self.tuned, self.state = tuned, state or {}
        self.record = record or FitRecord()

    @property
    def renderer(self) -> Renderer:
        return self.engine.renderer

    def generate(
        self,
        conversations: Sequence[Conversation],
        sampling: Sampling,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Answer]:
        """Sample `sampling.n` answers to each conversation, in the order given."""
        return self.engine.generate([self.prepare(c) for c in conversations], sampling, progress=progress)

    def choose(
        self,
        conversations: Sequence[Conversation],
        choices: Sequence[Sequence[str]],
        sampling: Sampling,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Answer]:
        """The answer among a closed set, `sampling.n` for each conversation: the likeliest choice as a whole.

        Nothing is sampled here, so the n answers are the same; methods that think before they choose do sample.
        """
        return self.engine.choose([self.prepare(c) for c in conversations], choices, sampling, progress=progress)

    def stream(self, conversation: Conversation, sampling: Sampling) -> Iterator[str]:
        """One answer in pieces, as it grows."""
        return self.engine.stream(self.prepare(conversation), sampling)

    def findings(self, examples: Sequence[Example], answers: Sequence[Answer]) -> list[Finding]:  # noqa: ARG002
        """What this model shows in the report once the test set was read; nothing by default."""
        return []

    def score(
        self,
        conversations: Sequence[Conversation],
        continuations: Sequence[Sequence[str]],
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[list[float]]:
        """Log-probability in nats of each continuation of each conversation, its end token included."""
        return self.engine.score([self.prepare(c) for c in conversations], continuations, progress=progress)

    def shorten(self, conversation: Conversation, room: int) -> tuple[Conversation, bool]:
        """Cut a conversation that leaves fewer than `room` positions for an answer, as in training (`Renderer.fit`).

        Returns:
            The conversation, and whether it was cut.
        """
        return self.engine.shorten(conversation, room)

    def framed(self, conversation: Conversation) -> Conversation:
        """The conversation with the frames that stand around its question, without shots."""
        return conversation

    def prompt_tokens(self, conversation: Conversation) -> int:
        """Tokens that the model reads for a conversation, shots and soft tokens included."""
        return self.engine.prompt_tokens(self.prepare(conversation))

    def shown(self, conversation: Conversation) -> int:  # noqa: ARG002
        """Shots and passages that the method puts into the prompt; there are fewer where a conversation is long."""
        return 0

    def save(self, folder: Path) -> None:
        """Write everything that `kamerton.methods.load_adapted` needs: `kamerton.json` and the trained weights."""
        folder.mkdir(parents=True, exist_ok=True)
        self._save_weights(folder)
        request = {k: str(v) if isinstance(v, Path) else v for k, v in self.base.request.items()}
        request["dtype"] = self.base.info.dtype  # `auto` may choose another one on another day
        about = {
            "method": self.method,
            "options": self.options.model_dump(),
            "state": self.state,
            "base": request,
            "base_fingerprint": self.base.info.fingerprint,
            "renderer_fingerprint": self.renderer.fingerprint,
        }
        write_json(folder / "kamerton.json", about)  # last: its presence means that the rest is there

    def _save_weights(self, folder: Path) -> None:
        if self.tuned is not None:
            self.tuned.save(folder)


class Wrapped(Adapted):
    """A model that is asked, or answers, through something around another one: shots, documents, votes.

    Args:
        inner: the model inside, itself perhaps a wrapped one.
        method, options: what made this one.
        own: what it does to a conversation before the model inside sees it.
        state: what `load` needs, as JSON.
        frames: whether that puts a frame around the question, for which a long question has to leave room. Shots and
            documents are none: there are fewer of them where room is short.
    """

    def __init__(
        self, inner: Adapted, *, method: str, options: Options, own: Prepare, state: dict[str, Any] | None = None,
        frames: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(
            inner.base, inner.engine.model, method=method, options=options,
            prepare=lambda conversation: inner.prepare(own(conversation)), tuned=inner.tuned, state=state,
        )  # fmt: skip
        self.engine = inner.engine  # one engine, so that its counts are those of all that was done
        self.inner, self.own, self.frames = inner, own, frames

    def generate(
        self, conversations: Sequence[Conversation], sampling: Sampling, *,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Answer]:  # fmt: skip
        return self.inner.generate([self.own(c) for c in conversations], sampling, progress=progress)

    def choose(
        self, conversations: Sequence[Conversation], choices: Sequence[Sequence[str]], sampling: Sampling, *,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Answer]:  # fmt: skip
        return self.inner.choose([self.own(c) for c in conversations], choices, sampling, progress=progress)

    def score(
        self, conversations: Sequence[Conversation], continuations: Sequence[Sequence[str]], *,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[list[float]]:  # fmt: skip
        return self.inner.score([self.own(c) for c in conversations], continuations, progress=progress)

    def findings(self, examples: Sequence[Example], answers: Sequence[Answer]) -> list[Finding]:
        return self.inner.findings(examples, answers)

    def stream(self, conversation: Conversation, sampling: Sampling) -> Iterator[str]:
        return self.inner.stream(self.own(conversation), sampling)

    def shorten(self, conversation: Conversation, room: int) -> tuple[Conversation, bool]:
        """As the model inside does, and further where frames around the question need the room."""
        kept, cut = self.inner.shorten(conversation, room)
        limit = self.engine.model.max_length
        if limit is None:
            return kept, cut
        most = limit - self.engine.model.soft_tokens - min(room, limit // 2)
        # what a frame adds stays the same but for tokens that merge where the question was cut
        for _ in range(4):
            over = len(self.renderer.prompt(self.framed(kept))) - most
            if over <= 0:
                break
            kept, cut = self.renderer.fit(kept, len(self.renderer.prompt(kept)) - over)
        return kept, cut

    def framed(self, conversation: Conversation) -> Conversation:
        return self.inner.framed(self.own(conversation) if self.frames else conversation)

    def shown(self, conversation: Conversation) -> int:
        asked = self.own(conversation)
        # a shot is a question and its answer, and nothing else adds answers
        shots = sum(m.role == "assistant" for m in asked) - sum(m.role == "assistant" for m in conversation)
        return shots + self.inner.shown(asked)

    def _save_weights(self, folder: Path) -> None:
        self.inner.save(folder / "over")


def decode_through(adapted: Adapted, engine: Engine) -> None:
    """Let a model, and whatever is inside it, decode through an engine."""
    inside: Adapted | None = adapted
    while inside is not None:
        inside.engine = engine
        inside = inside.inner if isinstance(inside, Wrapped) else None


def is_plain(adapted: Adapted) -> bool:
    """Whether a model's answers are what is decoded behind one prompt, nothing more: they can be shown as they grow."""
    if isinstance(adapted, Wrapped) and type(adapted).generate is Wrapped.generate:
        return is_plain(adapted.inner)
    return type(adapted).generate is Adapted.generate


class Method(Protocol):
    """One named way of adapting a base to a task."""

    name: ClassVar[str]
    summary: ClassVar[str]
    trains: ClassVar[str]
    paper: ClassVar[str]
    options: ClassVar[type[Options]]

    def seeded(self, options: Any) -> bool:
        """Whether the seed changes anything; without, one run stands for all seeds (when decoding is greedy)."""
        ...

    def fit(self, base: Base, task: Task, budget: Budget, options: Any, run: Run) -> Adapted:
        """Adapt the base to the task within the budget."""
        ...

    def load(self, base: Base, folder: Path, about: dict[str, Any]) -> Adapted:
        """Read what `Adapted.save` wrote."""
        ...


def with_answers(task: Task) -> tuple[Task, list[str]]:
    """The task without the training questions that have no reference answer, and a note where there are any."""
    train = answered(task.train)
    left = len(task.train) - len(train)
    if not left:
        return task, []
    note = f"{left:,} of {len(task.train):,} training questions were left out: none of their answers is a good one"
    return replace(task, train=train), [note]


def record_dict(record: FitRecord) -> dict[str, Any]:
    """A fit's record as plain values."""
    return asdict(record)
