"""Defines the deployments of the application on Ray Serve: replicas of each model, and the API in front of them."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any

from ray.exceptions import RayError
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException

from videollama2.engines.ray.client import ReplicaClient, ReplicaReply, lost
from videollama2.engines.ray.core import serve
from videollama2.engines.ray.metrics import ClusterMetrics
from videollama2.engines.ray.placement import gpus_of, placed
from videollama2.errors import EngineError
from videollama2.serve.cluster.protocol import WorkerStatus
from videollama2.serve.settings import Security, read_media_policy, read_security
from videollama2.serve.web.errors import no_worker

if TYPE_CHECKING:
    from ray.serve import Application, Deployment
    from ray.serve.handle import DeploymentHandle
    from starlette.types import ASGIApp

    from videollama2.inference.back_end import BackEnd

FRONT = "api"
METRICS_S = 5.0
"""Seconds for the processes to tell their metrics."""

_FRONT_REQUESTS = 4096
"""Requests that a process of the API has under way at one time. It must not refuse any: Serve would then ask a process
on another machine, and a request would depend on two machines."""

_BETWEEN_CHECKS_S = 5.0
_ROUTER = "videollama2.engines.ray.router.MediaAffinityRouter"


def application(models: Sequence[argparse.Namespace]) -> Application:
    """Return the application.

    Args:
        models: flags of each model, see :func:`videollama2.engines.ray.settings.read_models`. Keys and limits of
            requests are those of the first.

    Raises:
        ConfigError: a flag is invalid.
    """
    security = read_security(models[0])
    handles = {args.model_name: _replicas(args).bind(args, security.log_prompts) for args in models}
    deployment = serve.deployment(
        name=FRONT,
        num_replicas=models[0].fronts,
        max_replicas_per_node=1 if models[0].fronts > 1 else None,
        max_ongoing_requests=_FRONT_REQUESTS,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=models[0].drain_timeout,
        health_check_period_s=_BETWEEN_CHECKS_S,
    )(serve.ingress()(Front))
    return deployment.bind(security, handles)


def _replicas(args: argparse.Namespace) -> Deployment:
    """Return the deployment of one model.

    Raises:
        ConfigError: a flag is invalid.
    """
    read_media_policy(args)  # wrong flags are reported here, rather than by every replica
    least, most = args.min_replicas, max(args.min_replicas, args.max_replicas or args.min_replicas)
    scaling = AutoscalingConfig(
        min_replicas=least,
        max_replicas=most,
        target_ongoing_requests=args.target_requests,
        upscale_delay_s=args.scale_up_after,
        downscale_delay_s=args.scale_down_after,
    )
    return serve.deployment(
        name=args.model_name,
        **({"num_replicas": least} if least == most else {"autoscaling_config": scaling}),
        max_ongoing_requests=args.replica_requests,
        max_queued_requests=args.max_queue,
        ray_actor_options={"num_cpus": args.cpus_per_replica, "num_gpus": gpus_of(args)},
        request_router_config=RequestRouterConfig(request_router_class=_ROUTER),
        graceful_shutdown_timeout_s=args.drain_timeout,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=_BETWEEN_CHECKS_S,
    )(EngineReplica)


# ------------------------------------------------------------------------------------------------------------ replicas


def open_replica_engine(args: argparse.Namespace) -> AbstractContextManager[BackEnd]:
    """Open the engine of a replica.

    Raises:
        ConfigError: a flag is for another engine. VideoLlama2Error: the model cannot be loaded.
    """
    if args.engine == "vllm":
        from videollama2.engines.vllm.worker import open_vllm_engine

        return open_vllm_engine(placed(args))
    from videollama2.serve.model_worker import open_own_engine

    return open_own_engine(placed(args))


class EngineReplica:
    """One copy of a model. It is called by the API alone.

    Args:
        args: flags of the model.
        log_prompts: whether questions are written to the log.
    """

    async def __init__(self, args: argparse.Namespace, log_prompts: bool) -> None:
        from videollama2.serve.model_worker import open_service
        from videollama2.serve.web.server import configure_logging
        from videollama2.serve.worker.app import make_worker_app

        configure_logging(part=args.model_name)
        self._name = serve.get_replica_context().replica_id.unique_id
        self._stack = ExitStack()
        policy = read_media_policy(args)
        self._service = await asyncio.to_thread(
            open_service, args, args.model_name, policy, log_prompts, open_replica_engine, self._stack
        )
        # Serve sends requests once this returns, and the first must not wait for processes to start.
        await self._service.sandbox.start()
        # The API has checked the key and the size of a request.
        security = Security(max_body_bytes=1 << 40, log_prompts=log_prompts)
        self._app = make_worker_app(self._service, security)

    async def answer(
        self, path: str, content: bytes, request_id: str, tried: Sequence[str] = ()
    ) -> AsyncGenerator[Any, None]:
        """Yield this replica's name, then status and headers of its reply, then the body in pieces."""
        from videollama2.engines.ray.asgi import post

        yield self._name
        async for item in post(self._app, path, content, {"x-request-id": request_id}):
            yield item

    async def status(self) -> WorkerStatus:
        """Return what is known about the model, and how busy this replica is."""
        return self._service.status()

    async def metrics(self) -> tuple[str, bytes]:
        """Return this replica's name and its metrics in Prometheus' text format."""
        return self._name, self._service.metrics.expose()

    def check_health(self) -> None:
        """Raise an error if the engine has stopped. Serve calls this, and replaces a replica that raises one."""
        if self._service.engine.closed:
            raise EngineError("the engine has stopped")

    async def __del__(self) -> None:
        """Close the engine. Serve calls this when all answers have ended."""
        if hasattr(self, "_service"):
            await self._service.close()
        if hasattr(self, "_stack"):
            await asyncio.to_thread(self._stack.close)


class ServeReplicas:
    """The replicas of one model as the API sees them; see :class:`videollama2.engines.ray.client.Replicas`."""

    def __init__(self, model: str, handle: DeploymentHandle) -> None:
        self._model, self._handle = model, handle

    def answer(
        self, path: str, content: bytes, request_id: str, tried: Sequence[str], affinity: str | None
    ) -> ReplicaReply:
        """See :class:`videollama2.engines.ray.client.Replicas`."""
        # The session id tells MediaAffinityRouter what a request is about, so that it need not parse the content.
        handle = self._handle.options(stream=True, session_id=affinity or "")
        return handle.answer.remote(path, content, request_id, tried=tuple(tried))

    async def status(self) -> WorkerStatus:
        """See :class:`videollama2.engines.ray.client.Replicas`."""
        return await self._handle.status.remote()

    def fault(self, error: BaseException, replica: str | None) -> Exception | None:
        """See :class:`videollama2.engines.ray.client.Replicas`."""
        from videollama2.serve.worker.service import queue_full

        if isinstance(error, BackPressureError):
            return queue_full(2.0)
        if isinstance(error, DeploymentUnavailableError):
            return no_worker(self._model)
        return lost(error, replica) if isinstance(error, (RayError, RayServeException)) else None

    async def metrics(self) -> dict[str, bytes]:
        """Return the metrics of each replica that replies in time."""
        return await told(self._handle)


async def told(handle: DeploymentHandle) -> dict[str, bytes]:
    """Return the metrics of all processes of a deployment by their names, without those that cannot be reached."""
    try:
        replies = await handle.broadcast("metrics").results_async(timeout_s=METRICS_S, return_exceptions=True)
    except (TimeoutError, RayError, RayServeException):
        return {}
    return dict(reply for reply in replies if isinstance(reply, tuple))


# ----------------------------------------------------------------------------------------------------------- the API


class Front:
    """A process of the API.

    Args:
        models: handle of each model's replicas.
    """

    def __init__(self, security: Security, models: Mapping[str, DeploymentHandle]) -> None:
        from videollama2.serve.web.server import configure_logging

        configure_logging(part=FRONT)
        self._security = security
        self._models = {name: ServeReplicas(name, handle) for name, handle in models.items()}
        context = serve.get_replica_context()
        self._name, self._app_name = context.replica_id.unique_id, context.app_name
        self._metrics = ClusterMetrics(self._all_metrics)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Return the web application; called by Serve."""
        from videollama2.engines.ray.routes import controller_router, without_request_id
        from videollama2.serve.cluster.front import ApiFront, make_front_app

        client = ReplicaClient(self._models)
        app = make_front_app(ApiFront(client), self._security, self._metrics)
        app.include_router(controller_router(client))
        return without_request_id(app)

    async def metrics(self) -> tuple[str, bytes]:
        """Return this process's name and its metrics."""
        return self._name, self._metrics.expose()

    async def _all_metrics(self) -> dict[str, bytes]:
        fronts = serve.get_deployment_handle(FRONT, self._app_name)
        found = await asyncio.gather(told(fronts), *(replicas.metrics() for replicas in self._models.values()))
        own = dict([await self.metrics()])
        return {name: text for texts in (own, *found) for name, text in texts.items()}
