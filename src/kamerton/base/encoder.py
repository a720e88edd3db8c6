"""An encoder (BERT, RoBERTa, DistilBERT, DeBERTa, …) as the rest of Kamerton sees it: rows of tokens in, a head's
logits out.

The head is transformers' own (`AutoModelForSequenceClassification`, `…TokenClassification`, `…QuestionAnswering`,
`…MultipleChoice`), so what is trained loads with transformers and nothing else (Devlin et al. 2019, arXiv 1810.04805,
section 4). A base is loaded without one; `load_base(…, head=…)` puts one on a copy. Rows are padded, attention leaves
the padding out. A recurrent or generative use of such a model is left out: it writes no text.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from kamerton.base.model import LanguageModel
from kamerton.errors import ModelError

Kind = Literal["classification", "regression", "choice", "span", "tagging"]

CLASSES: dict[str, str] = {
    "classification": "AutoModelForSequenceClassification",
    "regression": "AutoModelForSequenceClassification",
    "choice": "AutoModelForMultipleChoice",
    "span": "AutoModelForQuestionAnswering",
    "tagging": "AutoModelForTokenClassification",
}
"""Kind of head → transformers' class."""

_PEFT = {"span": "QUESTION_ANS", "tagging": "TOKEN_CLS"}
_HEADS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice")


@dataclass(frozen=True)
class Head:
    """What stands on an encoder.

    Attributes:
        kind: what it answers with.
        labels: of a classification its classes, of tagging its tags; () for other kinds.
        no_answer: of a span head: the text that stands for "the context does not say"; None where there always is an
            answer.
        seed: of its random start.
    """

    kind: Kind
    labels: tuple[str, ...] = ()
    no_answer: str | None = None
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "labels": list(self.labels)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Head:
        """What `to_dict` gave."""
        return cls(**{**values, "labels": tuple(values["labels"])})

    def config(self) -> dict[str, Any]:
        """What the model's configuration is told."""
        if self.kind == "regression":
            return {"num_labels": 1, "problem_type": "regression"}
        if not self.labels:
            return {}
        names = dict(enumerate(self.labels))
        more = {"problem_type": "single_label_classification"} if self.kind == "classification" else {}
        return {"id2label": names, "label2id": {name: i for i, name in names.items()}, **more}


def is_encoder(config: Any) -> bool:
    """Whether a configuration is that of an encoder without a decoder, as far as its class of model says."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    if config.is_encoder_decoder or getattr(config, "is_decoder", False):
        return False
    if any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in config.architectures or ()):
        return False
    return config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def head_class(config: Any, head: Head | None) -> Any:
    """The class of transformers' that loads an encoder with a head; of a saved model without one named, its own.

    Raises:
        ModelError: transformers has no such head for this architecture.
    """
    import transformers

    if head is None:
        own = next((n for n in config.architectures or () if n.endswith(_HEADS)), None)
        return transformers.AutoModel if own is None else getattr(transformers, own)
    auto = getattr(transformers, CLASSES[head.kind])
    if type(config) not in auto._model_mapping:
        raise ModelError(
            f"transformers has no {CLASSES[head.kind].removeprefix('AutoModelFor')} head for {config.model_type}",
            where="base", mend="use another encoder, such as BERT, RoBERTa, DistilBERT or DeBERTa",
        )  # fmt: skip
    return auto


def is_pooler(weight: str) -> bool:
    """Whether a weight belongs to a pooler, which many folders leave out."""
    return ".pooler." in f".{weight}"


def with_head(encoder: Any, head: Head, missing: Sequence[str], dtype: torch.dtype) -> Any:
    """A model with a fresh head on the weights of an encoder; `missing` ones start at random, as the head does.

    Raises:
        ModelError: transformers has no such head for this architecture.
    """
    config = copy.deepcopy(encoder.config)
    kind = head_class(config, head)
    for name, value in head.config().items():
        setattr(config, name, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(head.seed)
        hf = kind.from_config(config, dtype=dtype)
    weights = {name: weight for name, weight in encoder.state_dict().items() if name not in missing}
    # a head that does not read the pooler's output has no pooler
    unused = hf.base_model.load_state_dict(weights, strict=False)
    left = [n for n in unused.missing_keys if n not in missing] + [
        n for n in unused.unexpected_keys if not is_pooler(n)
    ]
    if left:
        raise ModelError(f"the weight {left[0]} has no place in {type(hf).__name__}", where="base")
    return hf


def head_modules(hf: Any) -> list[str]:
    """Names of the modules of the head."""
    return [
        name for name, module in hf.named_children()
        if module is not hf.base_model and any(True for _ in module.parameters())
    ]  # fmt: skip


def new_modules(model: EncoderModel) -> list[str]:
    """Names of the modules that are trained whatever else is: the head's, and a pooler that came without weights.

    A pooler that came with the model's weights is a part of the encoder.
    """
    poolers = [n for n, _ in model.hf.named_modules() if n.rpartition(".")[2] == "pooler"]
    return [*head_modules(model.hf), *(poolers if model.new_pooler else ())]


@dataclass(frozen=True)
class Padded:
    """Rows of tokens as one rectangle.

    Attributes:
        ids: (B, T) token ids. mask: (B, T) 1 where there is a token. types: (B, T) 0 or 1 for the segment, or None.
    """

    ids: Tensor
    mask: Tensor
    types: Tensor | None


def pad(rows: Sequence[Sequence[int]], types: Sequence[Sequence[int]] | None, pad_id: int) -> Padded:
    """Rows of tokens, padded behind."""
    longest = max(map(len, rows))
    fill = [[*row, *([pad_id] * (longest - len(row)))] for row in rows]
    mask = [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
    kinds = None if types is None else torch.tensor([[*t, *([0] * (longest - len(t)))] for t in types])
    return Padded(torch.tensor(fill), torch.tensor(mask), kinds)


class EncoderModel(LanguageModel):
    """An encoder, with a head or without."""

    encoder_decoder: ClassVar[bool] = False
    encoder: ClassVar[bool] = True
    task_type = "FEATURE_EXTRACTION"
    hf: Any

    def __init__(self, hf: Any, front: Any = None, *, inferring: Any = None) -> None:
        super().__init__(hf, front, inferring=inferring)
        self.new_pooler = False
        name = type(hf).__name__
        if name.endswith(_HEADS):
            kind = {"ForQuestionAnswering": "span", "ForTokenClassification": "tagging"}
            self.task_type = _PEFT.get(next((k for s, k in kind.items() if name.endswith(s)), ""), "SEQ_CLS")  # type: ignore[misc]

    @property
    def max_length(self) -> int | None:
        """The longest row in tokens; RoBERTa and its like count positions from behind their padding id."""
        most = getattr(self.config, "max_position_embeddings", None)
        if most is None or most < 1:
            return None
        for module_name, module in self.hf.named_modules():
            if module_name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
                if module.padding_idx is not None and module.num_embeddings == most:
                    return int(most - module.padding_idx - 1)
                break
        return int(most)

    def example_limit(self, front: int) -> int | None:
        return None if self.max_length is None else self.max_length - front

    def logits(self, batch: Padded) -> Tensor:
        """What the head says of rows, float32.

        Returns:
            (B, C) of a classification or regression (C = 1), (B,) of a choice, (B, T, 2) of a span head (start, end),
            (B, T, C) of tagging.
        """
        inputs = {"input_ids": batch.ids.to(self.device), "attention_mask": batch.mask.to(self.device)}
        if batch.types is not None:
            inputs["token_type_ids"] = batch.types.to(self.device)
        choice = type(self.hf).__name__.endswith("ForMultipleChoice")
        if choice:  # all rows are choices of one question to it; whose they are is known to the caller
            inputs = {name: value[None] for name, value in inputs.items()}
        with self._prepared():
            out = self.hf(**inputs)
        logits = torch.stack([out.start_logits, out.end_logits], dim=-1) if "start_logits" in out else out.logits
        lengths = batch.mask.sum(1)
        self.work.add(tokens=batch.ids.numel(), pairs=int((lengths**2).sum()), passes=1, grad=logits.requires_grad)
        return (logits[0] if choice else logits).float()

    def states(self, rows: Sequence[Sequence[int]]) -> list[Tensor]:
        """(n, H) final hidden states of each row's tokens."""
        padded = pad(rows, None, self.config.pad_token_id or 0)
        hidden = self.hf.base_model(
            input_ids=padded.ids.to(self.device), attention_mask=padded.mask.to(self.device)
        ).last_hidden_state
        self.work.add(tokens=padded.ids.numel(), pairs=sum(len(r) ** 2 for r in rows), passes=1)
        return [h[: len(row)] for h, row in zip(hidden, rows, strict=True)]


@torch.no_grad()
def probe(model: EncoderModel, tokens: Sequence[int]) -> float:
    """Largest absolute difference between a row's final states alone and beside a longer one, padding between.

    An encoder that looks at padding would be computed wrongly in batches; `load.py` refuses it.
    """
    short = list(tokens[: max(2, len(tokens) // 2)])
    alone, beside = model.states([short])[0], model.states([short, list(tokens)])[0]
    return float((alone - beside).abs().max())
