"""A reward model: a causal model whose last hidden state a linear head turns into a number, higher for better answers.

It lives in a folder that transformers loads as `AutoModelForSequenceClassification` with one label. A conversation is
what the model's template writes of it, as in other tools, and the score is read at its last token: the last one that is
not padding, so padding is a token that no conversation holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kamerton.base.load import choose_dtype
from kamerton.base.model import CausalModel
from kamerton.errors import ModelError
from kamerton.inference.prefix import SharedPrefix, fill
from kamerton.rendering import Renderer
from kamerton.tasks.example import Conversation, Message

MEND = "give a folder that kamerton reward train wrote, or another sequence classifier with one label"


def judged_tokens(
    renderer: Renderer, messages: Conversation, answer: str, limit: int | None, *,
    write: Callable[[Conversation, str], list[int]] | None = None,
) -> tuple[list[int], bool]:  # fmt: skip
    """Token ids of a conversation with its answer, and whether it was cut.

    What is longer than `limit` is cut in its longest message, and at its start where that does not help: the score is
    read at its end.

    Args:
        renderer: of the reward model.
        write: the token ids of both; default: as the template writes them.
    """

    def written(turns: Conversation) -> list[int]:
        return write(turns, answer) if write else renderer.conversation([*turns, Message("assistant", answer)])

    whole = written(messages)
    if limit is None or len(whole) <= limit:
        return whole, False
    room = limit - (len(whole) - len(renderer.prompt(messages)))
    with suppress(ModelError):  # the answer alone fills it
        kept, _ = renderer.fit(messages, max(1, room))
        whole = written(kept)
    return whole[-limit:], True


class RewardModel:
    """Scores answers.

    Args:
        hf: a transformers sequence classifier with one label over a causal backbone.
        renderer: writes conversations and answers as the model was trained on them.
        max_batch_tokens: tokens in one pass.

    Attributes:
        cut: answers that had to be cut to the model's positions so far, as in training.
    """

    def __init__(self, hf: Any, renderer: Renderer, *, max_batch_tokens: int = 8192) -> None:
        self.hf, self.renderer, self.max_batch_tokens, self.cut = hf, renderer, max_batch_tokens, 0
        self._model = CausalModel(hf)

    @classmethod
    def load(cls, folder: str | Path, *, dtype: str = "auto", device: str = "auto") -> RewardModel:
        """Read a folder.

        Args:
            folder: with config, safetensors and tokenizer.
            dtype: `auto`: as it was saved.
            device: `auto`: the first GPU, else the CPU.

        Raises:
            ModelError: not such a folder, or one whose scores could not be read where they should be.
        """
        import transformers

        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise ModelError("no config.json here", where=folder, mend=MEND)
        transformers.utils.logging.disable_progress_bar()
        target = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        try:
            config = transformers.AutoConfig.from_pretrained(str(folder))
            if config.num_labels != 1 or config.is_encoder_decoder:
                what = "an encoder–decoder" if config.is_encoder_decoder else f"a model with {config.num_labels} labels"
                raise ModelError(f"is {what}, not a causal reward model", where=folder, mend=MEND)
            kind = config.dtype if dtype == "auto" else choose_dtype(dtype, target)[0]
            hf, loaded = transformers.AutoModelForSequenceClassification.from_pretrained(
                str(folder), dtype=kind or torch.float32, use_safetensors=True, output_loading_info=True
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
        except ModelError:
            raise
        except Exception as error:  # transformers raises many kinds; every one is about this folder
            reason = " ".join(f"{error}".split())[:200]
            raise ModelError(f"cannot be loaded ({type(error).__name__}: {reason})", where=folder, mend=MEND) from error
        if loaded["missing_keys"]:
            first, count = sorted(loaded["missing_keys"])[0], len(loaded["missing_keys"])
            mend = MEND if "score" in first else "check that its files are whole"
            raise ModelError(f"{count} weights are missing, the first is {first}", where=folder, mend=mend)
        hf = hf.to(target).eval()
        hf.requires_grad_(False)
        return cls(hf, Renderer(tokenizer))

    def tokens(self, messages: Conversation, answer: str) -> list[int]:
        """A conversation with its answer as the model reads it."""
        row, cut = judged_tokens(self.renderer, messages, answer, self._model.max_length)
        self.cut += cut
        return row

    def score(
        self, conversations: Sequence[Conversation], answers: Sequence[str], *,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[float]:  # fmt: skip
        """The reward of each answer to the conversation beside it; what all of them share is computed once."""
        rows = [self.tokens(c, a) for c, a in zip(conversations, answers, strict=True)]
        out = [0.0] * len(rows)
        if not rows:
            return out
        with self._model.inference(), torch.inference_mode():
            prefix = SharedPrefix.of(self._model, rows)
            known = prefix.tokens
            places = sorted(range(len(rows)), key=lambda i: (len(rows[i]), rows[i]))
            done = 0
            for part in fill([len(rows[i]) - known for i in places], self.max_batch_tokens):
                picked = [places[i] for i in part]
                hidden = prefix.forward([rows[i][known:] for i in picked]).last()
                for i, value in zip(picked, self.head(hidden).tolist(), strict=True):
                    out[i] = value
                done += len(picked)
                if progress is not None:
                    progress(done, len(rows))
        return out

    def head(self, hidden: Tensor) -> Tensor:
        """(B, H) hidden states → (B,) float32 rewards; the head's product in float32 also beside bfloat16 weights."""
        return hidden.float() @ self.hf.score.weight.float()[0]
