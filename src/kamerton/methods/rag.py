"""`rag`: generator and query encoder trained together × RAG-sequence (Lewis et al. 2020, arXiv 2005.11401).

The document encoder and its vectors stay as they are, so documents can be added, changed and removed after training.
Every answer comes from the k best passages, one prompt each: candidates are generated from each passage and judged by
their probability with the passage summed out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import nn

from kamerton.base.load import Base
from kamerton.errors import KamertonError, ModelError
from kamerton.inference import Answer, Sampling
from kamerton.methods.defined import check_parameterisation
from kamerton.methods.documents import (
    DEPTHS,
    DocumentOptions,
    check_documents,
    document_state,
    found_again,
    opened,
    quality,
    questions,
    recall,
    save_index,
)
from kamerton.methods.method import Adapted, Finding, FitRecord, Run
from kamerton.methods.prompted import State, prompt_room
from kamerton.methods.trained import TrainedMethod, TrainingOptions
from kamerton.retrieval.asking import cited, fitting, question_of
from kamerton.retrieval.encoder import load_encoder
from kamerton.retrieval.hits import Hit
from kamerton.retrieval.index import PassageIndex
from kamerton.retrieval.joint import QueryingModel, querying, scale_of, trainable
from kamerton.tasks.example import Conversation, Example, Task
from kamerton.training import Budget
from kamerton.tuning import PARAMETERISATIONS, Tuned, get_parameterisation

Progress = Callable[[int, int], None]
FROZEN = "none"
"""The generator that is not trained."""


class RagOptions(DocumentOptions, TrainingOptions):
    """Options of rag."""

    objective: str = Field("retrieval-marginal", description="what is optimised")
    generator: str | dict[str, Any] = Field(
        "lora", description="what is trained of the generator: a parameterisation, or one with its options; or none"
    )
    passages: int = Field(4, gt=0, description="passages that an answer is summed over")
    scale: float | None = Field(
        None, gt=0, description="of similarities before the softmax; none: 20 for cosines, 1 for dot products"
    )
    query_rate: float = Field(
        0.02, gt=0, description="the query encoder's learning rate, as a share of the generator's"
    )
    decoding: Literal["fast", "thorough"] = Field(
        "fast", description="sum a candidate over the passages that gave it (fast), or over all of them (thorough)"
    )
    batch_size: int = Field(8, gt=0, description="questions in an optimiser step, each with all of its passages")

    @field_validator("objective")
    @classmethod
    def _marginal(cls, name: str) -> str:
        if name != "retrieval-marginal":
            raise ValueError(f"rag optimises retrieval-marginal, not {name}; use retrieval with over: for {name}")
        return name

    @field_validator("generator")
    @classmethod
    def _generator(cls, value: str | dict[str, Any]) -> str | dict[str, Any]:
        if value == FROZEN:
            return value
        name, given = (value, {}) if isinstance(value, str) else next(iter(value.items()), ("", {}))
        if name not in PARAMETERISATIONS or (isinstance(value, dict) and len(value) != 1):
            raise ValueError(f"unknown generator {value!r}; use one of: {', '.join(PARAMETERISATIONS)}, {FROZEN}")
        return {name: get_parameterisation(name).options(**(given or {})).model_dump()}


class Joint:
    """A parameterisation of the generator, and all weights of a copy of the index's encoder for the questions."""

    name = "rag"
    options = RagOptions
    encoder_decoder = True

    @staticmethod
    def attach(base: Base, options: RagOptions, task: Task, seed: int) -> Tuned:
        assert options.index is not None  # `Rag.fit` has put it there
        name = options.encoder or PassageIndex.open(options.index).about["encoder"]["name"]
        queries = load_encoder(name, device=str(base.model.device))
        PassageIndex.open(options.index, queries)  # refuses an encoder that is no longer the one that made the index
        torch.manual_seed(seed)
        if options.generator == FROZEN:
            inside = Tuned(base.reload(frozen=True).model, nn.Module())
        else:
            name, own = _generator(options)
            inside = get_parameterisation(name).attach(base, own, task, seed)
        model = querying(inside.model, queries)
        model.trained = [p for p in inside.module.parameters() if p.requires_grad]
        return Tuned(model, nn.ModuleList([inside.module, trainable(queries, options.query_rate)]), inside.peft)

    @staticmethod
    def load(base: Base, folder: Path, options: RagOptions) -> Tuned:
        """Attach what `Answering` saved."""
        queries = load_encoder(str(folder / "query-encoder"), device=str(base.model.device))
        if options.generator == FROZEN:
            inside = Tuned(base.reload(frozen=True).model, nn.Module())
        else:
            inside = get_parameterisation(_generator(options)[0]).load(base, folder / "generator")
        modules = nn.ModuleList([inside.module, queries.model])
        return Tuned(querying(inside.model, queries), modules, inside.peft)


def _generator(options: RagOptions) -> tuple[str, Any]:
    """The name of the generator's parameterisation, and its options."""
    chosen = options.generator
    ((name, given),) = chosen.items() if isinstance(chosen, dict) else ((chosen, {}),)
    return name, get_parameterisation(name).options(**given)


class Rag(TrainedMethod):
    """Generator and query encoder, trained by the likelihood of the answer with the passage summed out."""

    name = "rag"
    summary = "retrieval whose query encoder is trained with the generator"
    trains = "the generator's matrices and the query encoder"
    paper = "Lewis et al. 2020, arXiv 2005.11401"
    options = RagOptions
    parameterisation = Joint
    space = {"learning_rate": (1e-3, 3e-4, 3e-3)}  # noqa: RUF012 (read only)

    def fit(self, base: Base, task: Task, budget: Budget, options: RagOptions, run: Run) -> Adapted:
        state, notes = document_state(base, task, budget, options, run, self.front(options))
        inside = options.model_copy(update={"index": state["index"], "documents": None})
        trained = super().fit(base, task, budget, inside, run)
        record = replace(trained.record, notes=[*notes, *trained.record.notes])
        assert trained.tuned is not None
        made = Answering(base, trained.tuned, options, state, record, run.max_batch_tokens)
        asked = [made.shorten(e.messages, task.max_answer_tokens)[0] for e in task.test]
        fewer = sum(any(not hits for _, hits, _ in prompts) for prompts in made.prompts(asked))
        if fewer:
            record.notes.append(f"for {fewer} of {len(task.test)} test questions a passage does not fit the context")
        return made

    def check(self, base: Base, task: Task, options: RagOptions) -> None:
        if options.generator != FROZEN:
            check_parameterisation(base, task, *_generator(options))
        check_documents(task, options)

    def front(self, options: RagOptions) -> int:
        own = None if options.generator == FROZEN else _generator(options)[1]
        return int(getattr(own, "tokens", 0))

    def finish(self, base: Base, tuned: Tuned) -> None:
        # evaluated in the base's data type, in which it was computed all along
        assert isinstance(tuned.model, QueryingModel)
        for parameter in tuned.model.trained:
            parameter.data = parameter.data.to(base.model.dtype)
        tuned.module.eval()

    def load(self, base: Base, folder: Path, about: dict[str, Any]) -> Adapted:
        options = RagOptions(**about["options"])
        tuned = Joint.load(base, folder, options)
        tuned.module.requires_grad_(False).eval()
        return Answering(base, tuned, options, found_again(about["state"], folder), FitRecord(), 8192)


def _same_encoder(index: PassageIndex, state: State) -> PassageIndex:
    """The index, if its vectors are still of the encoder from which the query encoder was trained.

    Raises:
        ModelError: the index was built anew with another one.
    """
    made = index.about["encoder"]
    if state.get("encoder", made["fingerprint"]) != made["fingerprint"]:
        raise ModelError(
            f"the index was built anew with another encoder ({made['name']}) than rag was trained with",
            where=index.folder, mend="build it with the encoder it had, or tune rag again",
        )  # fmt: skip
    return index


Prompt = tuple[Conversation, list[Hit], float]
"""A conversation with one passage in it (or none, where it does not fit), the passage, and log p(d|x)."""


class Answering(Adapted):
    """Answers with the passage summed out.

    A prompt shows one passage, so `prepare` (chat, forgetting) puts in the likeliest one.
    """

    def __init__(
        self, base: Base, tuned: Tuned, options: RagOptions, state: State, record: FitRecord, max_batch_tokens: int
    ) -> None:
        super().__init__(
            base, tuned.model, method="rag", options=options, tuned=tuned, state=state, record=record,
            prepare=lambda conversation: self.prompts([conversation])[0][0][0], max_batch_tokens=max_batch_tokens,
        )  # fmt: skip
        assert isinstance(tuned.model, QueryingModel)
        self.rag, self.queries = options, tuned.model.queries
        self.index = _same_encoder(opened(options, state), state)
        self._room = prompt_room(base, state)
        self._sampling = Sampling()

    def prompts(self, conversations: Sequence[Conversation]) -> list[list[Prompt]]:
        """For each conversation its prompts, one for each of the k passages, the likeliest first."""
        vectors = self.queries.questions([question_of(c) for c in conversations])
        scale = scale_of(self.index.about["encoder"]["metric"], self.rag.scale)
        out = []
        for conversation, vector in zip(conversations, vectors, strict=True):
            hits = self.index.by_vector(vector, self.rag.passages)
            if not hits:
                raise KamertonError("the index is empty", where=self.index.folder, mend="add documents")
            prior = torch.log_softmax(scale * torch.tensor([hit.score for hit in hits]), dim=0).tolist()
            fitted = [fitting(self.renderer, conversation, [hit], self._room) for hit in hits]
            out.append([(asked, kept, p) for (asked, kept), p in zip(fitted, prior, strict=True)])
        return out

    def generate(
        self, conversations: Sequence[Conversation], sampling: Sampling, *, progress: Progress | None = None
    ) -> list[Answer]:
        """At temperature 0 the likeliest candidate; else samples: a passage by p(d|x), then an answer to it."""
        self._sampling = sampling
        prompts = self.prompts(conversations)
        if sampling.temperature > 0:
            return self._sample(prompts, sampling, progress)
        flat = [asked for group in prompts for asked, _, _ in group]
        said = self.engine.generate(flat, replace(sampling, n=1), progress=_fewer(progress, len(prompts), len(flat)))
        candidates: list[list[Answer]] = []
        for group in prompts:
            candidates.append(said[: len(group)])
            said = said[len(group) :]
        values = [self._values(group, own) for group, own in zip(prompts, candidates, strict=True)]
        return [
            one
            for group, own, value in zip(prompts, candidates, values, strict=True)
            for one in [_best(group, own, value)] * sampling.n
        ]

    def _values(self, group: Sequence[Prompt], candidates: Sequence[Answer]) -> dict[str, float]:
        """log p(y|x) of each distinct candidate."""
        texts = list(dict.fromkeys(a.text for a in candidates))
        prior = np.array([p for _, _, p in group])
        if self.rag.decoding == "thorough":
            scores = np.array(self.engine.score([asked for asked, _, _ in group], [texts] * len(group)))  # (k, C)
        else:
            scores = np.full((len(group), len(texts)), -np.inf)
            for row, a in zip(scores, candidates, strict=True):
                row[texts.index(a.text)] = sum(a.logprobs)
        values = np.logaddexp.reduce(prior[:, None] + scores, axis=0)
        return dict(zip(texts, values.tolist(), strict=True))

    def _sample(self, prompts: list[list[Prompt]], sampling: Sampling, progress: Progress | None) -> list[Answer]:
        drawn: list[tuple[Conversation, list[Hit]]] = []
        for number, group in enumerate(prompts):
            chance = np.exp([p for _, _, p in group])
            rng = np.random.default_rng([sampling.seed, number])
            for i in rng.choice(len(group), size=sampling.n, p=chance / chance.sum()):
                drawn.append(group[i][:2])
        said: list[Answer | None] = [None] * len(drawn)
        # the samples of one prompt are one request, so that each has noise of its own
        groups: dict[Conversation, list[int]] = {}
        for i, (asked, _) in enumerate(drawn):
            groups.setdefault(asked, []).append(i)
        done = 0
        for asked, members in groups.items():
            for i, one in zip(members, self.engine.generate([asked], replace(sampling, n=len(members))), strict=True):
                said[i] = replace(one, details={"sources": cited(drawn[i][1])})
            done += len(members)
            if progress is not None:
                progress(done, len(drawn))
        return [one for one in said if one is not None]

    def score(
        self, conversations: Sequence[Conversation], continuations: Sequence[Sequence[str]], *,
        progress: Progress | None = None,
    ) -> list[list[float]]:  # fmt: skip
        """log p(y|x) with the passage summed out."""
        return self._score(self.prompts(conversations), continuations, progress)

    def _score(
        self, prompts: list[list[Prompt]], continuations: Sequence[Sequence[str]], progress: Progress | None
    ) -> list[list[float]]:
        flat = [asked for group in prompts for asked, _, _ in group]
        texts = [own for group, own in zip(prompts, continuations, strict=True) for _ in group]
        scores = self.engine.score(flat, texts, progress=_fewer(progress, len(prompts), len(flat)))
        out = []
        for group in prompts:
            prior = np.array([p for _, _, p in group])
            out.append(np.logaddexp.reduce(prior[:, None] + np.array(scores[: len(group)]), axis=0).tolist())
            scores = scores[len(group) :]
        return out

    def choose(
        self, conversations: Sequence[Conversation], choices: Sequence[Sequence[str]], sampling: Sampling, *,
        progress: Progress | None = None,
    ) -> list[Answer]:  # fmt: skip
        self._sampling = sampling
        prompts = self.prompts(conversations)
        values = self._score(prompts, choices, progress)
        return [
            Answer(own[int(np.argmax(value))], (), (), "stop", self._read(group), details=_details(group))
            for group, own, value in zip(prompts, choices, values, strict=True)
            for _ in range(sampling.n)
        ]

    def findings(self, examples: Sequence[Example], answers: Sequence[Answer]) -> list[Finding]:
        asked = questions(examples)
        trained = self.queries.questions(asked)
        found = {
            "query encoder as trained": [self.index.by_vector(v, DEPTHS[-1]) for v in trained],
            "before training": self.index.search_all(asked, DEPTHS[-1], "vector"),
        }
        alone = Adapted(self.base, self.engine.model, method="rag", options=self.options)
        return [
            recall(examples, found, "query encoder as trained"),
            quality(alone, examples, answers, self._sampling, "the generator of rag"),
        ]

    def prompt_tokens(self, conversation: Conversation) -> int:
        """Tokens of all prompts that an answer is summed over."""
        return self._read(self.prompts([conversation])[0])

    def shown(self, conversation: Conversation) -> int:
        return sum(len(hits) for _, hits, _ in self.prompts([conversation])[0])

    def _read(self, group: Sequence[Prompt]) -> int:
        front = self.engine.model.soft_tokens
        return sum(len(self.renderer.prompt(asked)) + front for asked, _, _ in group)

    def _save_weights(self, folder: Path) -> None:
        assert self.tuned is not None
        if self.rag.generator != FROZEN:
            Tuned(self.tuned.model, self.tuned.module, self.tuned.peft).save(folder / "generator")
        (folder / "query-encoder").mkdir(parents=True, exist_ok=True)
        self.queries.model.save_pretrained(str(folder / "query-encoder"), create_model_card=False)
        save_index(self.state, folder)


def _best(group: Sequence[Prompt], candidates: Sequence[Answer], values: dict[str, float]) -> Answer:
    """The candidate of the highest marginal probability, as the passage that made it likeliest gave it."""
    text = max(values, key=lambda name: values[name])
    places = [i for i, a in enumerate(candidates) if a.text == text]
    best = max(places, key=lambda i: group[i][2] + sum(candidates[i].logprobs))
    written = sum(len(a.tokens) for a in candidates)
    ranked = sorted(values, key=lambda name: -values[name])
    return replace(
        candidates[best],
        prompt_tokens=sum(a.prompt_tokens for a in candidates),
        extra_tokens=written - len(candidates[best].tokens),
        details={
            **_details(group),
            "candidates": [{"text": name, "log_probability": round(values[name], 4)} for name in ranked],
        },
    )


def _details(group: Sequence[Prompt]) -> dict[str, Any]:
    sources = [{**one, "probability": round(float(np.exp(p)), 4)} for _, hits, p in group for one in cited(hits)]
    return {"sources": sources}


def _fewer(progress: Progress | None, few: int, many: int) -> Progress | None:
    """Progress over questions from progress over their prompts."""
    if progress is None:
        return None
    return lambda done, _: progress(done * few // max(many, 1), few)
