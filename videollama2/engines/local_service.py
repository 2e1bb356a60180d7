"""Runs a worker's service in this process, and sends it the requests of a batch without a network."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videollama2.engines.batch_lines import BatchLine
from videollama2.errors import EngineError, MissingDependencyError
from videollama2.eval.samples import StoredAnswer
from videollama2.flags import model_options
from videollama2.ranks import own_device

if TYPE_CHECKING:
    from videollama2.inference.back_end import BackEnd


def name_of_model(args: argparse.Namespace) -> str:
    """Return what requests call the model."""
    return args.served_model_name or Path(args.model_path).name


@contextmanager
def local_service(args: argparse.Namespace) -> Iterator[Any]:
    """Run a worker's service in this process.

    Args:
        args: flags of ``videollama2 batch``, where ``engine`` is ``own`` or ``vllm``.

    Raises:
        MissingDependencyError: the packages for serving are not installed.
    """
    try:
        from videollama2.serve.settings import MediaPolicy
        from videollama2.serve.untrusted_media.sandbox import Sandbox
        from videollama2.serve.worker.app import WorkerService
    except ModuleNotFoundError as error:
        raise MissingDependencyError.of("videollama2 batch needs the packages of serving", "[serve]") from error
    # The requests are the user's own, so they may name any file on this machine.
    policy = MediaPolicy(media_root=Path("/"), max_bytes=4 << 30)
    with _open_engine(args) as engine, closing(Sandbox.of(policy, engine.processor)) as sandbox:
        yield WorkerService(engine, name_of_model(args), policy, sandbox)


def _open_engine(args: argparse.Namespace) -> AbstractContextManager[BackEnd]:
    """Open the engine that the flags ask for.

    Raises:
        MissingDependencyError: its package is not installed. ConfigError: a flag has no meaning for it.
    """
    sizes = {"max_batch": args.max_batch, "max_length": args.max_length}
    if args.engine == "vllm":
        from videollama2.engines.vllm.engine import VllmEngine, vllm_options

        return VllmEngine(args.model_path, **sizes, **vllm_options(args))
    from videollama2.inference.api import model_init
    from videollama2.inference.engine import Engine

    options = model_options(args)
    options["device"] = options["device"] or own_device()
    model, processor, _ = model_init(args.model_path, **options)
    return Engine(model, processor, **sizes)


class LocalClient:
    """Sends requests to a service; an asynchronous context manager.

    Args:
        service: see :func:`local_service`.
    """

    def __init__(self, service: Any) -> None:
        import httpx

        from videollama2.serve.settings import Security
        from videollama2.serve.worker.app import make_worker_app

        self._engine = service.engine
        transport = httpx.ASGITransport(app=make_worker_app(service, Security(max_body_bytes=6 << 30)))
        self._client = httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=None)
        # Enough requests to refill the running batch while its oldest answer is still being generated.
        self.free = asyncio.Semaphore(min(3 * self._engine.max_batch, self._engine.max_queue))

    async def __aenter__(self) -> LocalClient:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._client.aclose()

    async def answer(self, line: BatchLine) -> StoredAnswer:
        """Send one request and return its reply. Callers hold :attr:`free` meanwhile.

        Raises:
            EngineError: the engine has stopped, so that the reply tells nothing about the request.
        """
        if line.body.get("stream"):
            return _refused(line, 400, "'stream': an answer of a batch comes whole")
        # Written here, since the client's own encoder raises an error where a text holds half a character.
        content = json.dumps(line.body).encode()
        reply = await self._client.post(line.url, content=content, headers={"content-type": "application/json"})
        if reply.status_code >= 500 and self._engine.closed:
            raise EngineError("the engine has stopped; its log says why")
        try:
            return stored(line, reply.status_code, reply.json())
        except ValueError:
            return _refused(line, max(reply.status_code, 400), f"{line.url} does not answer with JSON")


def _refused(line: BatchLine, status: int, message: str) -> StoredAnswer:
    from videollama2.serve.web.errors import ApiError

    return stored(line, status, ApiError(status, message).body())


def stored(line: BatchLine, status: int, body: dict[str, Any]) -> StoredAnswer:
    """Return the record of a reply, with its error where it is one."""
    from videollama2.serve.web.errors import ApiError

    error = None if status < 400 else ApiError.of_body(status, body).message
    return StoredAnswer(line.custom_id, json.dumps({"status": status, "body": body}), error)
