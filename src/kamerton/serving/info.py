"""What there is and how it does: `/v1/models`, `/healthz`, `/metrics`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import PlainTextResponse, Response

from kamerton.serving.errors import ApiError, json_response
from kamerton.serving.hub import Hub
from kamerton.serving.measures import CONTENT_TYPE

router = APIRouter()


@router.get("/v1/models", response_model=None)
async def models(request: Request) -> Response:
    """All models."""
    return json_response({"object": "list", "data": list(_known(request).values())})


@router.get("/v1/models/{name:path}", response_model=None)
async def model(name: str, request: Request) -> Response:
    """One model."""
    known = _known(request)
    if name not in known:
        raise ApiError(404, f"no model {name!r}", param="model", code="model_not_found")
    return json_response(known[name])


@router.get("/healthz", response_model=None)
async def health(request: Request) -> Response:
    """Whether the server takes requests."""
    hub: Hub = request.app.state.hub
    stopping = hub.stopping.is_set()
    return json_response({"status": "stopping" if stopping else "ok"}, 503 if stopping else 200)


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Numbers in Prometheus's text format."""
    hub: Hub = request.app.state.hub
    return Response(hub.measures.text(), media_type=CONTENT_TYPE)


def _known(request: Request) -> dict[str, dict[str, Any]]:
    hub: Hub = request.app.state.hub
    found = {
        served.name: {
            "id": served.name, "object": "model", "created": served.created, "owned_by": "kamerton",
            "method": served.adapted.method, "base": served.adapted.base.info.name,
            "context": served.engine.model.max_length,
        }
        for served in hub.models.values()
    }  # fmt: skip
    embedder = request.app.state.embedder
    if embedder is not None:
        found[embedder.name] = {
            "id": embedder.name, "object": "model", "created": 0, "owned_by": "kamerton", "method": "embeddings"
        }  # fmt: skip
    return found
