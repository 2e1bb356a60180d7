"""A small application with the frame that every web application here has."""

import asyncio
import threading

from fastapi import Request
from pydantic import BaseModel
from starlette.responses import StreamingResponse

from tests.serve.helpers.servers import PATIENCE_S
from videollama2.serve.settings import Security
from videollama2.serve.web.app import make_app
from videollama2.serve.web.errors import no_worker

KEYS = Security(api_keys=("alpha", "beta"), worker_token="secret", max_body_bytes=100_000)


class Text(BaseModel):
    text: str
    number: int = 0


def make(security=KEYS, **options):
    app = make_app("test", security, worker_paths=("/part",), **options)
    app.state.go_on = threading.Event()

    @app.post("/echo")
    async def echo(body: Text):
        return {"text": body.text}

    @app.post("/part")
    async def part():
        return {}

    @app.post("/fault")
    async def fault():
        raise RuntimeError("the secret of /etc/passwd")

    @app.post("/refused")
    async def refused():
        raise no_worker("m", 7.4)

    @app.post("/stream")
    async def stream(request: Request):
        async def chunks():
            yield b"first"
            await asyncio.to_thread(app.state.go_on.wait, PATIENCE_S)
            yield b"last"

        return StreamingResponse(chunks())

    @app.post("/cut")
    async def cut():
        async def chunks():
            yield b"first"
            raise RuntimeError("broken")

        return StreamingResponse(chunks())

    return app


def error_of(reply, status):
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/json"
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error
