"""Adds routes to the API on Ray Serve beside OpenAI's: those of a controller, so that this package's page and terminal
chat can use it as one. It names itself as the only worker.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from videollama2.engines.ray.client import ReplicaClient
from videollama2.serve.cluster.protocol import ModelAsked, WorkerStatus
from videollama2.serve.web.body import JSONRoute
from videollama2.serve.web.errors import model_not_found


def controller_router(client: ReplicaClient) -> APIRouter:
    """Return a router with the routes with which clients of a controller find models and workers."""
    router = APIRouter(tags=["controller"], route_class=JSONRoute)

    @router.post("/refresh_all_workers")
    async def refresh_all_workers() -> None:
        """Do nothing: the models are those that were deployed."""

    @router.post("/list_models")
    async def list_models() -> dict[str, Any]:
        return {"models": sorted(await client.lengths())}

    @router.post("/list_max_model_lens")
    async def list_max_model_lens() -> dict[str, Any]:
        lengths = await client.lengths()
        return {"max_model_lens": {name: length for name, length in lengths.items() if length is not None}}

    @router.post("/get_worker_address")
    async def get_worker_address(body: ModelAsked, request: Request) -> dict[str, str]:
        if body.model not in await client.lengths():
            raise model_not_found(body.model)
        return {"address": str(request.base_url).rstrip("/")}

    @router.post("/worker_get_status")
    async def worker_get_status() -> WorkerStatus:
        """Return the status of the only model, or the names of several."""
        names, statuses = list(await client.lengths()), await client.statuses()
        return (
            statuses[names[0]] if len(names) == 1 and statuses else WorkerStatus.model_validate({"model_names": names})
        )

    return router


def without_request_id(app: ASGIApp) -> ASGIApp:
    """Return the application without the header ``x-request-id`` in its replies, to which Serve adds the same."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [pair for pair in message.get("headers", ()) if pair[0] != b"x-request-id"]
                message = {**message, "headers": headers}
            await send(message)

        await app(scope, receive, sending)

    return wrapped
