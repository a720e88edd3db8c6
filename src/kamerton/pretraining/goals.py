"""What a run learns: its objective on the recipe's texts, how it is judged at the end, and what it shows on the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from kamerton import processes
from kamerton.base.model import LanguageModel
from kamerton.base.recurrent_model import RecurrentModel
from kamerton.objectives.packed_contexts import PackedContexts, Stream
from kamerton.pretraining.models import Started, check_room
from kamerton.pretraining.samples import continuations, looker
from kamerton.pretraining.tokens import Corpus, Watch, read_corpus
from kamerton.recipe_pretrain import PretrainRecipe
from kamerton.training.faults import Room

Metrics = dict[str, float]


@dataclass
class Goal:
    """An objective with what belongs to it.

    Attributes:
        objective: what the training loop is given.
        key: what of the data decides the weights.
        told: of the data, for the report.
        measure: the metrics of a trained model on what was held out.
        scale: turns a validation loss (nats a target) into bits per byte; None where that means nothing.
        notes: what the user should know.
    """

    objective: Any
    key: Any
    told: dict[str, Any]
    measure: Callable[[LanguageModel], Metrics]
    scale: float | None = None
    notes: list[str] = field(default_factory=list)

    def shown(self, loss: float) -> str:
        """A validation loss for the progress bar."""
        return f", {loss * self.scale:.3f} bits/byte held out" if self.scale else f", held out {loss:.3f}"

    def curve(self, rows: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
        """The learning curve with bits per byte where they are known."""
        out = []
        for row in rows:
            held = row.get("validation_loss")
            more = {"bits_per_byte": held * self.scale} if held is not None and self.scale else {}
            out.append({**row, **more})
        return out


def goal_of(recipe: PretrainRecipe, started: Started, folder: Path, watch: Watch) -> Goal:
    """The goal of a recipe for its model.

    Args:
        folder: of the run; tokens and samples are kept in it.
        watch: told about progress.

    Raises:
        KamertonError: texts that cannot be read, or too few.
    """
    if started.kind == "masked":
        from kamerton.pretraining.masked_goal import masked_goal

        return masked_goal(recipe, started, folder, watch)
    if started.kind == "encoder-decoder":
        from kamerton.pretraining.translation import translation_goal

        return translation_goal(recipe, started, folder, watch)
    return _causal(recipe, started, folder, watch)


def read(recipe: PretrainRecipe, started: Started, folder: Path, watch: Watch) -> Corpus:
    """The recipe's texts as streams."""
    data = recipe.data
    if not isinstance(data.train, str):
        mend = "name one file or folder of texts"
        raise recipe.error(("data", "train"), "pairs of files are for translation", mend=mend)
    held: Path | float | None = None
    if isinstance(data.held_out, str):
        held = recipe.resolve(data.held_out)
    elif isinstance(data.held_out, float | int) and data.held_out:
        held = float(data.held_out)
    # the first process writes the streams, and the others map them
    tokens, texts = processes.written_folder(folder) / "tokens", recipe.resolve(data.train)
    corpus = processes.in_turn(lambda: read_corpus(
        started.tokenizer, started.end, tokens, texts, held, data.documents, watch
    ))  # fmt: skip
    check_room(recipe, len(corpus.train), started.context)
    return corpus


def told(corpus: Corpus) -> dict[str, Any]:
    """A corpus in numbers."""
    held = corpus.held_out
    return {
        "documents": corpus.documents[0], "tokens": len(corpus.train), "bytes": corpus.train.bytes,
        "held_out_documents": corpus.documents[1], "held_out_tokens": 0 if held is None else len(held),
        "held_out_bytes": 0 if held is None else held.bytes,
    }  # fmt: skip


def bits_per_byte(nats: float, stream: Stream) -> float:
    """Code length of a stream in bits for each byte of its documents."""
    return nats / math.log(2) / stream.bytes


def _causal(recipe: PretrainRecipe, started: Started, folder: Path, watch: Watch) -> Goal:
    corpus, t = read(recipe, started, folder, watch), recipe.training
    held = corpus.held_out
    common: dict[str, Any] = {"context": started.context, "batch_size": t.batch_size, "seed": t.seed}
    notes = list(corpus.notes)
    if isinstance(started.model, RecurrentModel):
        from kamerton.objectives.truncated import Truncated

        objective: Any = Truncated(corpus.train, held, **common)
        measure: Callable[[LanguageModel], Metrics] = lambda model: _recurrent_metrics(objective, model, held)  # noqa: E731
    else:
        config = started.model.config
        objective = PackedContexts(
            corpus.train,
            held,
            **common,
            max_tokens=t.max_tokens,
            within_documents=recipe.attention == "documents",
            balance=getattr(config, "router_aux_loss_coef", 0.0) if hasattr(config, "num_experts_per_tok") else 0.0,
        )
        measure = lambda model: causal_metrics(objective, model, held)  # noqa: E731
    if objective.batch_size < t.batch_size:
        notes.append(f"the corpus has only {objective.batch_size} contexts, which makes one step of them")
    if recipe.samples is not None:
        spec = recipe.samples

        def make(hf: Any) -> list[dict[str, str]]:
            texts = continuations(hf, started, spec, t.seed)
            return [{"prompt": p, "text": x} for p, x in zip(spec.prompts, texts, strict=True)]

        objective.look = looker(folder / "samples.jsonl", make)
    scale = None if held is None or corpus.lossy else (len(held) - 1) / math.log(2) / held.bytes
    notes += [corpus.lossy] if corpus.lossy else []
    given = measure if not corpus.lossy else lambda model: without_bits(measure(model))
    return Goal(objective, [told(corpus), corpus.digest], told(corpus), given, scale, notes)


def without_bits(metrics: Metrics) -> Metrics:
    """Metrics of text whose bytes cannot be had back from its tokens."""
    return {name: value for name, value in metrics.items() if not name.startswith("bits_per_byte")}


def summed(objective: Any, model: LanguageModel, batches: Sequence[Any]) -> float:
    """The summed loss over batches, in nats; halved where memory runs out, which the objective's notes then say."""
    with torch.no_grad(), model.inference():
        each = Room(objective.notes).each(batches, lambda b: float(objective.loss(model, b).total), "in measuring")
        return sum(found for _, found in each)


def causal_metrics(objective: PackedContexts, model: LanguageModel, held: Stream | None) -> Metrics:
    """Perplexity and bits per byte, with windows side by side and with windows that overlap by half."""
    if held is None:
        return {}
    plain = summed(objective, model, objective.validation())
    over = summed(objective, model, objective.windows(held, max(1, objective.context // 2)))
    return {
        "bits_per_byte": bits_per_byte(plain, held), "bits_per_byte_half_overlap": bits_per_byte(over, held),
        "perplexity": math.exp(plain / (len(held) - 1)), "loss": plain / (len(held) - 1),
    }  # fmt: skip


def _recurrent_metrics(objective: Any, model: LanguageModel, held: Stream | None) -> Metrics:
    if held is None:
        return {}
    nats = summed(objective, model, objective.strips(held, 1))
    loss = nats / (len(held) - 1)
    return {"bits_per_byte": bits_per_byte(nats, held), "perplexity": math.exp(loss), "loss": loss}
