"""Requests of chat completions, what is read of their replies, and servers that answer them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from tests.conftest import ROOT, golden_audio_dir
from tests.serve.helpers.media import policy, text_part, user
from tests.serve.helpers.servers import LOCAL, AppThread
from videollama2.serve.api.request import ChatRequest

PATH = "/v1/chat/completions"
KEY = "sk-test"
"""The key of servers that want one."""

BASE = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
"""The fields that a request must have."""


def request(**fields: Any) -> ChatRequest:
    """A request with further fields."""
    return ChatRequest.model_validate({**BASE, **fields})


def faults(**fields: Any) -> list[Any]:
    """What is said of a request that is refused."""
    with pytest.raises(ValidationError) as caught:
        request(**fields)
    return caught.value.errors()


def ask(client, *parts, **fields):
    messages = fields.pop("messages", None) or [user(*parts)]
    return client.post(PATH, json={"model": "tiny", "messages": messages, "max_tokens": 24, **fields})


def turned_away(client, *parts, **fields):
    """The error of a request that is the client's fault, and that tells nothing about this machine."""
    reply = ask(client, *parts, text_part("what?"), **{"max_tokens": 4, **fields})
    assert 400 <= reply.status_code < 500, reply.text
    places = {str(ROOT), str(Path.home()), "/tmp"} - {"/"}
    for secret in ("Traceback", "0x7f", *places, "site-packages", "Errno", "PIL", "av.error"):
        assert secret not in reply.text
    return reply.json()["error"]


def openai_client(server: AppThread, key: str = "none") -> Any:
    """OpenAI's own client of a server; skips the test where it is not installed."""
    openai = pytest.importorskip("openai")
    own = httpx.Client(timeout=120, **LOCAL)
    return openai.OpenAI(base_url=server.url + "/v1", api_key=key, max_retries=0, timeout=120, http_client=own)


def answer(client, *parts, **fields):
    reply = ask(client, *parts, **fields)
    assert reply.status_code == 200, reply.text
    return reply.json()["choices"][0]["message"]["content"]


def refused(client, *parts, status=400, **fields):
    reply = ask(client, *parts, **fields)
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@lru_cache
def tiny() -> Any:
    """Model and processor that ship with the package."""
    from videollama2 import model_init

    return model_init("videollama2-tiny")[:2]


def tiny_engine(**options: Any) -> Any:
    from videollama2.inference.engine import Engine

    return Engine(*tiny(), **{"max_batch": 8, "max_length": 1024, **options})


@lru_cache
def av_model() -> Any:
    """A random model that sees and hears, and its processor."""
    import torch

    from videollama2.checkpoints import load_checkpoint

    folder = golden_audio_dir() / "models" / "qwen2-stc_connector_v35-siglip-beats"
    model, processor = load_checkpoint(folder, dtype=torch.float32)
    return model.eval(), processor


def av_engine(**options: Any) -> Any:
    from videollama2.inference.engine import Engine

    return Engine(*av_model(), **{"max_batch": 2, "max_length": 4096, **options})


@contextmanager
def live_chat(
    engine: Any = None, security: Any = None, limits: Any = None, **policy_changes: Any
) -> Iterator[tuple[AppThread, Any]]:
    """A server that answers chats with the tiny model: the parts of a worker without its controller."""
    from videollama2.serve.api.routes import openai_router
    from videollama2.serve.settings import Security
    from videollama2.serve.untrusted_media.sandbox import Sandbox
    from videollama2.serve.web.app import make_app
    from videollama2.serve.worker.handlers import WorkerHandlers
    from videollama2.serve.worker.service import ChatService

    own = policy(**policy_changes)
    engine = engine or tiny_engine()
    box = Sandbox.of(own, engine.processor)
    service = ChatService(engine, "tiny", own, box, limits)
    app = make_app("test", security or Security())
    app.include_router(openai_router(WorkerHandlers(service)))
    server = AppThread(app)
    try:
        yield server, service
    finally:
        server.close()
        box.close()
        engine.close()
