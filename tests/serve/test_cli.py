"""Chatting in the terminal through a controller."""

import asyncio
import io
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.serve.servers import AppThread, StrangeWorker, begin, free_port, http
from videollama2.errors import ConfigError
from videollama2.serve.cli import RemoteChat, main
from videollama2.serve.cluster.controller_app import Controller, make_controller_app
from videollama2.serve.cluster.registry import Registry
from videollama2.serve.settings import Security

MODEL = "videollama2-tiny"
CLIP = ROOT / "videollama2" / "assets" / "demo" / "moving_shapes.mp4"
QUESTION = "Which object moves first, the white cross or the red circle?"


@pytest.fixture(scope="module")
def server():
    controller = Controller(Registry(), Security())
    with AppThread(make_controller_app(controller)) as found:
        found.registry = controller.registry
        yield found


@pytest.fixture
def empty(server):
    for worker in server.registry.workers:
        server.registry.remove(worker.name)
    return server


def register(server, worker, model=MODEL):
    body = {"worker_name": worker.url, "worker_status": {"model_names": [model]}, "check_heart_beat": False}
    assert http.post(server.url + "/register_worker", json=body).status_code == 200


@pytest.fixture
def chat(empty, tiny_worker):
    register(empty, tiny_worker)
    found = RemoteChat(empty.url, options={"max_completion_tokens": 24, "temperature": 0}, out=io.StringIO())
    assert found.choose_model() == MODEL
    return found


def said(chat):
    return chat.out.getvalue()


def test_answers_are_those_of_the_engine(chat, tiny_engine):
    clip = ("video", str(CLIP))
    expected = tiny_engine.submit(QUESTION, [clip], max_new_tokens=24).result().text
    chat.handle(f"/video {CLIP}")
    chat.handle(QUESTION)
    assert expected.strip() and said(chat).rstrip().endswith(expected.strip())
    follow_up = "What is its colour?"
    messages = [
        {"role": "user", "content": [{"type": "video", "path": str(CLIP)}, {"type": "text", "text": QUESTION}]},
        {"role": "assistant", "content": expected.strip()},
        {"role": "user", "content": follow_up},
    ]
    second = tiny_engine.submit(messages, max_new_tokens=24).result().text
    chat.handle(follow_up)
    assert said(chat).rstrip().endswith(second.strip())
    assert [message["role"] for message in chat.messages] == ["user", "assistant"] * 2


def test_commands(chat):
    chat.handle("/help")
    chat.handle("/nonsense")
    chat.handle("/video /no/such/file.mp4")
    chat.handle(f"/image {Path(__file__)}")
    chat.handle("What?")
    text = said(chat)
    assert "/clear" in text and "no command /nonsense" in text and "cannot be read (No such file" in text
    assert "error: " in text.splitlines()[-1], "a file that is no picture is told by the worker"
    assert chat.messages == [], "a question without an answer is taken back"
    chat.handle("/clear")
    assert chat._media == []


def test_a_conversation_from_lines(chat):
    lines = iter(["", f"/video '{CLIP}'", QUESTION, "/quit", "never"])
    chat.run(lambda prompt: next(lines))
    assert len(chat.messages) == 2 and next(lines) == "never"

    def end(prompt):
        raise EOFError

    chat.run(end)


def test_options_of_videos_go_with_them(chat):
    chat.media_options = {"num_frames": 2}
    chat.handle(f"/video {CLIP}")
    assert chat._media[0]["mm_processor_kwargs"] == {"num_frames": 2}


def test_which_model(empty, tiny_worker):
    with pytest.raises(ConfigError, match=r"\(none\)"):
        RemoteChat(empty.url).choose_model()
    register(empty, tiny_worker, "one")
    with StrangeWorker(lambda *_: asyncio.sleep(0)) as other:
        register(empty, other, "two")
        with pytest.raises(ConfigError, match="one, two"):
            RemoteChat(empty.url).choose_model()
        assert RemoteChat(empty.url, "two").choose_model() == "two"
        given = iter(["", "3", "none", "2"])
        out = io.StringIO()
        assert RemoteChat(empty.url, out=out).choose_model(lambda _: next(given)) == "two"
        assert "1  one" in out.getvalue() and "2  two" in out.getvalue()
        assert RemoteChat(empty.url, out=out).choose_model(lambda _: "one") == "one"


def test_errors_are_one_line_and_code_2(capsys):
    assert main(["--controller", f"http://127.0.0.1:{free_port()}"]) == 2
    captured = capsys.readouterr().err
    assert captured.startswith("cli: error: ") and captured.count("\n") == 1
    with pytest.raises(SystemExit):
        main(["--controller", "localhost"])


def test_a_key_is_shown(tmp_path, tiny_service):
    key = tmp_path / "key"
    key.write_text("alpha\n")
    controller = Controller(Registry(), Security(api_keys=("alpha",)))
    with AppThread(make_controller_app(controller)) as server:
        assert main(["--controller", server.url]) == 2
        assert main(["--controller", server.url, "--api-key-file", str(key), "--model", "x"]) == 2


def test_ctrl_c_stops_the_answer_and_not_the_program(empty):
    """In a real terminal, with a worker that would never end."""

    async def endless(path, body, writer):
        question = json.loads(body)["messages"][-1]["content"]
        text = {"choices": [{"delta": {"content": f"[{question}]"}}]}
        await begin(writer, b"data: " + json.dumps(text).encode() + b"\n\n")
        if question == "first":
            await asyncio.sleep(60)
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    with StrangeWorker(endless) as worker:
        register(empty, worker)
        terminal = Terminal(["-m", "videollama2.serve.cli", "--controller", empty.url])
        terminal.wait_for("> ")
        terminal.type("first\n")
        terminal.wait_for("[first]")
        terminal.process.send_signal(signal.SIGINT)
        terminal.wait_for("(stopped)")
        assert worker.left.wait(5)
        terminal.type("second\n")
        terminal.wait_for("[second]")
        terminal.type("/quit\n")
        assert terminal.process.wait(10) == 0


class Terminal:
    """A program in a terminal of its own."""

    def __init__(self, arguments):
        ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored by what runs in the background
        )
        os.close(theirs)
        self._ours, self._text, self._new = ours, "", threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        while True:
            try:
                data = os.read(self._ours, 4096)
            except OSError:
                return
            with self._new:
                self._text += data.decode(errors="replace")
                self._new.notify_all()

    def type(self, text):
        os.write(self._ours, text.encode())

    def wait_for(self, text, seconds=20):
        """Until it is on the screen; what stands before it is forgotten."""
        deadline = time.monotonic() + seconds
        with self._new:
            while text not in self._text:
                assert self._new.wait(deadline - time.monotonic()), f"{text!r} is not in {self._text!r}"
            self._text = self._text.partition(text)[2]
