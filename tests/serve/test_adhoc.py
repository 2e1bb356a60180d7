"""The commands as a person starts them."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.helpers.ports import free_port
from tests.serve.helpers.pages import Browser, Visitor, needs_gradio
from tests.serve.helpers.processes import Installation, Process
from tests.serve.helpers.servers import PATIENCE_S, client_of

pytestmark = needs_gradio

SCRIPT = ["videollama2/serve/gradio_web_server_adhoc.py"]
MODULE = ["-m", "videollama2.serve.gradio_web_server_adhoc"]
ORDER = "Which object moves first, the white cross or the red circle?"


@contextmanager
def started(arguments: list[str], folder: Path, python: str | Path = sys.executable) -> Iterator[Process]:
    port = free_port()
    flags = ["--port", str(port), "--vote-log", str(folder / "votes.jsonl")]
    environment = {"TMPDIR": str(folder)}
    process = Process([*arguments, *flags], f"http://127.0.0.1:{port}", folder / "log", environment, python)
    try:
        yield process.ready()
    finally:
        process.close()


@pytest.mark.slow
def test_as_a_script_it_answers_like_ask_and_ends_in_order(browser: Browser, tmp_path: Path) -> None:
    with started([*SCRIPT, "--model-path", "videollama2-tiny"], tmp_path) as process:
        page = Visitor(browser, process.url)
        page.page.locator("#vl-chat").get_by_text(ORDER).click()
        assert page.answer() == "the red circle"
        page.press("up")
        assert "Thank you" in page.notice()
        assert page.outside() == []
        page.close()
        assert json.loads((tmp_path / "votes.jsonl").read_text(encoding="utf-8"))["kind"] == "up"
        assert len(list(tmp_path.glob("videollama2-page-*"))) == 1
        process.process.send_signal(signal.SIGTERM)
        assert process.process.wait(PATIENCE_S) == 0, process.tail()
        assert list(tmp_path.glob("videollama2-page-*")) == []


@pytest.mark.slow
def test_the_page_of_a_controller_answers_the_same(
    browser: Browser,
    installation: Installation,
    tmp_path: Path,
) -> None:
    arguments = ["-m", "videollama2.serve.gradio_web_server", "--controller", installation.controller.url]
    with started([*arguments, "--model-list-mode", "reload"], tmp_path) as process:
        page = Visitor(browser, process.url)
        page.page.locator("#vl-chat").get_by_text(ORDER).click()
        assert page.answer() == "the red circle"
        assert page.ask("What is the shape of the white object?") == "cross"
        page.expect(page.page.locator(".vl-strip img")).to_have_count(8)
        assert page.outside() == []
        page.close()
        mapped = Path(f"/proc/{process.process.pid}/maps")
        assert not mapped.exists() or "libtorch" not in mapped.read_text()


@pytest.mark.slow
def test_as_a_module_it_needs_no_arguments_and_asks_for_names(tmp_path: Path, python_of_forks: Path) -> None:
    accounts = tmp_path / "accounts"
    accounts.write_text("ann:secret\n", encoding="utf-8")
    with started([*MODULE, "--auth-file", str(accounts)], tmp_path, python_of_forks) as process:
        with client_of(process) as client:
            assert client.get("/config").status_code == 401
            assert client.post("/login", data={"username": "ann", "password": "wrong"}).status_code == 400
            assert client.post("/login", data={"username": "ann", "password": "secret"}).status_code == 200
            assert client.get("/config").status_code == 200
        process.process.send_signal(signal.SIGINT)
        assert process.process.wait(PATIENCE_S) == 0, process.tail()


@pytest.mark.slow
def test_a_space_starts_with_the_variables_of_a_space(tmp_path: Path, python_of_forks: Path) -> None:
    """docs/space/app.py as Hugging Face starts it: address and port from the environment, shown in its frame."""
    port, host = free_port(), "someone-videollama2.hf.space"
    environment = {
        "TMPDIR": str(tmp_path),
        "SYSTEM": "spaces",
        "SPACE_ID": "someone/videollama2",
        "SPACE_HOST": host,
        "GRADIO_SERVER_NAME": "0.0.0.0",
        "GRADIO_SERVER_PORT": str(port),
    }
    address, log = f"http://127.0.0.1:{port}", tmp_path / "log"
    process = Process(["docs/space/app.py"], address, log, environment, python_of_forks)  # gradio is imported there
    try:
        process.ready()
        with client_of(process) as client:
            reply = client.get("/config", headers={"Host": host})
            assert reply.status_code == 200
            assert "frame-ancestors 'self' https://huggingface.co" in reply.headers["content-security-policy"]
            assert client.get("/config", headers={"Host": "attacker.example"}).status_code == 403
        process.process.send_signal(signal.SIGTERM)
        assert process.process.wait(PATIENCE_S) == 0, process.tail()
    finally:
        process.close()
