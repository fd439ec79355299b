"""What there is, and whether it can answer: for load balancers, monitors and clients that ask before they rank."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from r1ranker.serving.decide import entries
from r1ranker.serving.errors import json_response
from r1ranker.serving.service import Service

router = APIRouter(tags=["state"])


@router.head("/health", include_in_schema=False)
@router.head("/ready", include_in_schema=False)
@router.get("/health")
@router.get("/ready")
async def health(request: Request) -> Response:
    """200 where all rankers answer, by ranker; 503 while one does not, or the server stops."""
    service: Service = request.app.state.service
    state = {name: "ok" if live.healthy else "down" for name, live in service.rankers.items()}
    sound = bool(state) and set(state.values()) == {"ok"} and not service.stopping
    request.state.told = {} if sound else {"rankers": state}
    return json_response({"status": "ok" if sound else "unavailable", "rankers": state}, 200 if sound else 503)


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Counters in Prometheus' text format."""
    service: Service = request.app.state.service
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/v1/models")
@router.get("/models")
async def models(request: Request) -> Response:
    """What a request may name as its `model`: rankers, and for conversations routers and LLMs."""
    service: Service = request.app.state.service
    names = service.allowed(request.state.key)
    rankers = [{"id": n, "object": "model", "created": 0, "owned_by": "r1-ranker", "kind": "ranker"} for n in names]
    mine = service.settings.key(request.state.key)
    return json_response({"object": "list", "data": rankers + entries(service.settings, mine.models if mine else None)})


@router.get("/v1/info")
@router.get("/info")
async def info(request: Request) -> Response:
    """What TEI says of itself; Dify asks it before it takes a server for a reranker."""
    service: Service = request.app.state.service
    limits, name = service.settings.limits, service.settings.default_ranker
    return json_response(
        {
            "model_id": name,
            "model_sha": None,
            "model_dtype": service.settings.rankers[name].dtype,
            "model_type": {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}},
            "max_concurrent_requests": limits.queue,
            "max_input_length": limits.characters,
            "max_batch_tokens": limits.all_characters,
            "max_batch_requests": service.settings.rankers[name].batch_size,
            "max_client_batch_size": limits.documents,
            "auto_truncate": service.settings.rankers[name].truncate is not None,
            "tokenization_workers": 1,
            "version": "1.8.0",
        }
    )
