"""The page over sockets: what is served to whom, what is refused, and who may log in."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.serve.helpers.pages import CLIP, Served, needs_gradio
from tests.serve.helpers.servers import LOCAL
from videollama2.errors import ConfigError
from videollama2.serve.page.server import check_account, read_accounts

pytestmark = needs_gradio

# ------------------------------------------------------------------------------------------------------------- accounts


def test_accounts(tmp_path: Path) -> None:
    file = tmp_path / "accounts"
    file.write_text("ann:pass:word\n\nbob:ü\n", encoding="utf-8")
    accounts = read_accounts(file)
    assert check_account(accounts, "ann", "pass:word")
    assert check_account(accounts, "bob", "ü")
    assert not check_account(accounts, "ann", "ü")
    assert not check_account(accounts, "eve", "")
    file.write_text("ann\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="line 1"):
        read_accounts(file)


# ------------------------------------------------------------------------------------------------ the page over sockets


@pytest.fixture
def http(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.address, timeout=20, **LOCAL) as client:
        yield client


def test_health_and_headers(http: httpx.Client) -> None:
    assert http.get("/health").json() == http.get("/ready").json() == {"status": "ok"}
    page = http.get("/")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"
    assert "fonts.googleapis.com" not in page.text
    assert not re.findall(r'<(?:script|link)[^>]+(?:src|href)="https?:', page.text)


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=README.md",
        "/gradio_api/file=../../etc/passwd",
        "/gradio_api/file=http://127.0.0.1:1/x",
        "/gradio_api/file=https://example.com/x.png",
        "/gradio_api/proxy=http://127.0.0.1:1/x",
        "/demo/gradio_api/proxy=http://127.0.0.1:1/x",
        f"/gradio_api/file={Path(__file__).resolve()}",
    ],
)
def test_no_file_and_no_address_is_opened_for_visitors(http: httpx.Client, path: str) -> None:
    assert http.get(path).status_code in (403, 404)


def test_bundled_examples_are_served(http: httpx.Client) -> None:
    reply = http.get(f"/gradio_api/file={CLIP}")
    assert reply.content == CLIP.read_bytes()


def test_other_origins_get_no_answer(http: httpx.Client) -> None:
    reply = http.get("/config", headers={"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in reply.headers or reply.headers["access-control-allow-origin"] != "*"


def test_bodies_and_files_are_bounded(http: httpx.Client) -> None:
    assert http.post("/gradio_api/queue/join", content=b"x" * (2 << 20)).status_code == 413
    assert http.post("/gradio_api/call/upload", content=b"x" * (2 << 20)).status_code == 413
    chunks = (b"x" * (1 << 18) for _ in range(8))
    assert http.post("/gradio_api/queue/join", content=chunks).status_code == 413
    reply = http.post("/gradio_api/upload", files={"files": ("a.mp4", b"x" * ((4 << 20) + 10))})
    assert reply.status_code == 413
    assert http.post("/gradio_api/upload", files={"files": ("a.mp4", b"x" * 1000)}).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:7860"}, 200),
        ({"Host": "[::1]:7860", "Origin": "http://[::1]:7860"}, 200),
        ({"Host": "attacker.example"}, 403),
        ({"Host": "attacker.example:7860", "Origin": "http://attacker.example:7860"}, 403),
        ({"Origin": "https://attacker.example"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_pages_and_names_of_strangers_are_refused(http: httpx.Client, headers: dict[str, str], status: int) -> None:
    """A page whose name leads here (DNS rebinding), or that posts across origins, reads nothing and uploads nothing."""
    reply = http.get("/config", headers=headers)
    assert reply.status_code == status
    assert "access-control-allow-credentials" not in reply.headers or status == 200
    upload = http.post("/gradio_api/upload", headers=headers, files={"files": ("x.png", b"x")})
    assert upload.status_code == status
    if status == 403:
        assert "access-control-allow-origin" not in reply.headers


@pytest.mark.slow
def test_half_a_request_does_not_hold_a_connection(tmp_path: Path) -> None:
    import gradio as gr

    from videollama2.serve.page.server import launch_page

    with gr.Blocks() as page:
        gr.HTML("here")
    running = launch_page(page, tmp_path, port=0, header_timeout_s=0.3)
    try:
        place = urlsplit(running.address)
        with socket.create_connection((place.hostname, place.port), timeout=30) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: local")
            received = b"".join(iter(lambda: connection.recv(4096), b""))  # ends when the server has closed it
            assert b"200 OK" not in received
    finally:
        running.close()


def test_a_body_that_does_not_arrive_is_refused(tmp_path: Path) -> None:
    from videollama2.serve.page.guard import Guard

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await receive()

    async def never() -> Any:
        await asyncio.Event().wait()

    async def run() -> list[dict[str, Any]]:
        sent: list[dict[str, Any]] = []

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        guard = Guard(application, tmp_path, 1000, 1000, body_timeout_s=0.05)
        headers = [(b"host", b"localhost"), (b"content-length", b"10")]
        scope = {"type": "http", "path": "/gradio_api/upload", "method": "POST", "headers": headers}
        await asyncio.wait_for(guard(scope, never, send), 30)
        return sent

    assert asyncio.run(run())[0]["status"] == 408


def test_a_full_disk_refuses_uploads(tmp_path: Path) -> None:
    from videollama2.serve.page.guard import Guard

    (tmp_path / "old").write_bytes(b"x" * 100)
    guard = Guard(None, tmp_path, max_file_bytes=1000, max_folder_bytes=50)

    async def run() -> list[dict[str, Any]]:
        sent: list[dict[str, Any]] = []

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await guard({"type": "http", "path": "/gradio_api/upload", "method": "POST", "headers": []}, None, send)
        return sent

    assert asyncio.run(run())[0]["status"] == 503


def call(http: httpx.Client, handler: str, files: Any) -> httpx.Response:
    """Call a handler as the browser would, with a list of files of one's own making."""
    config = http.get("/config").json()
    dependency = next(each for each in config["dependencies"] if each["api_name"] == handler)
    kinds = {each["id"]: each for each in config["components"]}
    data = [
        files if kinds[number]["type"] == "file" else kinds[number]["props"].get("value")
        for number in dependency["inputs"]
    ]
    body = {"data": data, "fn_index": dependency["id"], "session_hash": "visitor", "trigger_id": None}
    return http.post("/gradio_api/run/predict", json=body)


@pytest.mark.parametrize("path", ["/etc/passwd", "http://127.0.0.1:1/clip.mp4", "https://example.com/clip.mp4"])
def test_a_forged_upload_is_refused(http: httpx.Client, path: str) -> None:
    forged = [{"path": path, "orig_name": "clip.mp4", "meta": {"_type": "gradio.FileData"}}]
    reply = call(http, "show_frames", forged)
    assert reply.status_code == 500
    assert "root:" not in reply.text
    assert call(http, "show_frames", None).status_code == 200


def test_questions_go_through_the_queue_alone(http: httpx.Client) -> None:
    assert call(http, "ask", None).status_code == 404


@pytest.mark.parametrize("name", ["UploadedFiles", "RecordedVideo", "RecordedSound"])
def test_widgets_take_uploads_alone_also_when_gradio_makes_them_anew(name: str) -> None:
    import gradio as gr

    from videollama2.serve.page import uploads

    widget = getattr(uploads, name)
    first = widget(label="x")
    for own in (first, first.__class__(**first.constructor_args)):
        with pytest.raises(gr.Error, match="addresses are not opened"):
            asyncio.run(own.async_move_resource_to_block_cache("http://127.0.0.1/a.mp4"))
        payload = SimpleNamespace(path="/tmp/a.webm")
        assert own.preprocess(payload) == (["/tmp/a.webm"] if name == "UploadedFiles" else "/tmp/a.webm"), (
            "not converted"
        )
        assert own.get_block_name() == widget.__base__.__name__.lower()
