"""`reward-model`: a trained classifier with one label says how good an answer is, its logit being the reward.

Any `AutoModelForSequenceClassification` in safetensors, of Kamerton or of other tools (TRL, OpenRLHF, …), is one. The
conversation with its answer is written by the model's own chat template. A causal classifier reads its score at the
last token that is no padding, so rows are always padded behind: no score depends on what else is in its batch.

What it leaves out: models whose code comes with them, and classifiers that read question and answer as two texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from kamerton.base.load import Base, DtypeName, choose_dtype
from kamerton.base.sizes import check_shards
from kamerton.base.sources import first_line, resolve
from kamerton.base.work import Work, flops
from kamerton.errors import KamertonError, ModelError
from kamerton.inference.prefix import fill
from kamerton.inference.reward_model import judged_tokens
from kamerton.rendering import Renderer
from kamerton.rewards.reward import checked
from kamerton.tasks.example import Conversation, Example, Message, Task
from kamerton.tuning.parameterisation import Options

BATCH_TOKENS = 8192
"""Tokens of one pass, padding included."""


class RewardModelOptions(Options):
    """Options of `reward-model`."""

    model: str = Field(min_length=1, description="a folder or hub id; needed")
    dtype: DtypeName | None = Field(None, description="data type; none: the base's")
    limit: int | None = Field(None, gt=0, description="longest conversation in tokens; none: the model's positions")


class RewardModel:
    """The logit of a classifier.

    Args:
        options: of the reward.
        base: its renderer writes conversations for a model without a template, if both have one tokenizer.

    Raises:
        ModelError: no such model, more than one label, no head, or no way to write a conversation for it.
    """

    summary: ClassVar[str] = "a classifier with one label that was trained on preferences"
    options: ClassVar[type[Options]] = RewardModelOptions
    short: ClassVar[str] = "model"
    name = "reward-model"
    needs_references = False
    range = (-np.inf, np.inf)

    def __init__(self, options: RewardModelOptions, base: Base) -> None:
        import transformers

        source, config, tokenizer = _opened(options.model)
        self._renderer, self._own = _writer(source, tokenizer, base)
        dtype, _ = choose_dtype(options.dtype or base.info.dtype, base.model.device)
        try:
            hf, loaded = transformers.AutoModelForSequenceClassification.from_pretrained(
                source, config=config, dtype=dtype, use_safetensors=True, trust_remote_code=False,
                output_loading_info=True,
            )  # fmt: skip
        except Exception as error:  # transformers raises many kinds; every one is about what the user named
            raise _unreadable(error, source) from error
        missing = sorted(loaded["missing_keys"])
        if missing:  # transformers would go on with random numbers in their place
            message = f"it is no reward model: {len(missing)} weights are missing, the first is {missing[0]}"
            raise ModelError(message, where=source, mend="name a model with a trained reward head")
        self.hf = hf.to(base.model.device).eval().requires_grad_(False)
        positions = getattr(config.get_text_config(), "max_position_embeddings", None)
        self.limit = min((n for n in (options.limit, positions) if n), default=None)
        self._scored = self._cut = 0
        self._work = Work()

    @classmethod
    def build(cls, base: Base, task: Task, options: Any) -> RewardModel:  # noqa: ARG003
        return cls(options, base)

    @classmethod
    def check(cls, base: Base, task: Task, options: Any) -> None:  # noqa: ARG003
        source, _, tokenizer = _opened(options.model)
        _writer(source, tokenizer, base)

    @property
    def flops(self) -> float:
        """Operations so far, padding included."""
        return flops(self._work, self.hf)

    @property
    def notes(self) -> list[str]:
        if not self._cut:
            return []
        return [f"reward {self.name}: {self._cut} of {self._scored} conversations were cut to {self.limit} tokens"]

    def state(self) -> dict[str, Tensor]:
        """What was counted."""
        return {"counts": torch.tensor([self._scored, self._cut, self._work.tokens, self._work.pairs])}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        self._scored, self._cut, tokens, pairs = state["counts"].tolist()
        self._work = Work(tokens=tokens, pairs=pairs)

    def tokens(self, messages: Conversation, answer: str) -> list[int]:
        """Token ids of a conversation with its answer, cut in its longest message where it is too long."""
        row, cut = judged_tokens(self._renderer, messages, answer, self.limit, write=self._tokens)
        self._cut += cut
        return row

    def _tokens(self, messages: Conversation, answer: str) -> list[int]:
        if not self._own:
            return [*self._renderer.prompt(messages), *self._renderer.answer(answer)]
        return self._renderer.conversation([*messages, Message("assistant", answer)])

    def __call__(self, examples: Sequence[Example], answers: Sequence[str]) -> np.ndarray:
        self._scored += len(answers)
        rows = [self.tokens(e.messages, a) for e, a in zip(examples, answers, strict=True)]
        return checked(self.name, examples, answers, self.scores(rows))

    def scores(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
        """(B,) logits of token ids, each at least one."""
        out = np.zeros(len(rows))
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
        with torch.inference_mode(), torch.autocast(self.hf.device.type, enabled=False):
            for batch in fill([len(rows[i]) for i in order], BATCH_TOKENS):
                part = [order[i] for i in batch]
                out[part] = self._pass([rows[i] for i in part]).double().cpu().numpy()
        return out

    def _pass(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """(B,) logits of one batch, padded behind."""
        config = self.hf.config.get_text_config()
        pad, unset = config.pad_token_id, config.pad_token_id is None
        if unset:  # alone, such a model reads its last token: pad with one that is no row's last
            last = {row[-1] for row in rows}
            pad = next(i for i in range(len(last) + 1) if i not in last)
        width = max(map(len, rows))
        self._work.add(tokens=len(rows) * width, pairs=len(rows) * width * (width + 1) // 2)
        ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], device=self.hf.device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=self.hf.device)
        try:
            config.pad_token_id = pad
            return self.hf(input_ids=ids, attention_mask=mask).logits[:, 0].float()
        finally:
            config.pad_token_id = None if unset else pad


def _opened(model: str) -> tuple[str, Any, Any]:
    """The source, configuration and tokenizer of a reward model, its label counted."""
    import transformers

    source, _ = resolve(model)
    if Path(source).is_dir():
        check_shards(Path(source))
    try:
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:
        raise _unreadable(error, source) from error
    if config.num_labels != 1:
        message = f"it has {config.num_labels} labels, and a reward model has one"
        raise ModelError(message, where=source, mend="name a model that was trained as a reward model")
    return source, config, tokenizer


def _writer(source: str, tokenizer: Any, base: Base) -> tuple[Renderer, bool]:
    """What writes conversations for a model, and whether it is the model's own template."""
    if tokenizer.chat_template:
        try:
            return Renderer(tokenizer), True
        except ModelError as error:
            raise ModelError(error.message, where=source, mend=error.mend) from error
    if tokenizer.get_vocab() == base.renderer.tokenizer.get_vocab() and not base.renderer.encoder_decoder:
        return base.renderer, False
    raise ModelError(
        f"it has another tokenizer than {base.info.name} and no chat template to write a conversation by",
        where=source,
        mend="set chat_template in its tokenizer_config.json",
    )


def _unreadable(error: Exception, source: str) -> KamertonError:
    text = f"the reward model cannot be loaded ({type(error).__name__}: {first_line(error)})"
    return ModelError(text, where=source, mend="check its files, or the hub id and the network")
