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
from tests.helpers.ports import free_port
from tests.serve.helpers.controllers import ControllerThread, register
from tests.serve.helpers.servers import PATIENCE_S, StrangeWorker, begin
from videollama2.errors import ConfigError
from videollama2.serve.cli import RemoteChat, main
from videollama2.serve.settings import Security

MODEL = "videollama2-tiny"
CLIP = ROOT / "videollama2" / "assets" / "demo" / "moving_shapes.mp4"
QUESTION = "Which object moves first, the white cross or the red circle?"


@pytest.fixture
def remote(controller, tiny_worker):
    register(controller, tiny_worker, MODEL)
    found = RemoteChat(controller.url, options={"max_completion_tokens": 24, "temperature": 0}, out=io.StringIO())
    assert found.choose_model() == MODEL
    return found


def said(chat):
    return chat.out.getvalue()


def test_answers_are_those_of_the_engine(remote, tiny_engine):
    clip = ("video", str(CLIP))
    expected = tiny_engine.submit(QUESTION, [clip], max_new_tokens=24).result(PATIENCE_S).text
    remote.handle(f"/video {CLIP}")
    remote.handle(QUESTION)
    assert expected.strip() and said(remote).rstrip().endswith(expected.strip())
    follow_up = "What is its colour?"
    messages = [
        {"role": "user", "content": [{"type": "video", "path": str(CLIP)}, {"type": "text", "text": QUESTION}]},
        {"role": "assistant", "content": expected.strip()},
        {"role": "user", "content": follow_up},
    ]
    second = tiny_engine.submit(messages, max_new_tokens=24).result(PATIENCE_S).text
    remote.handle(follow_up)
    assert said(remote).rstrip().endswith(second.strip())
    assert [message["role"] for message in remote.messages] == ["user", "assistant"] * 2


def test_commands(remote):
    remote.handle("/help")
    remote.handle("/nonsense")
    remote.handle("/video /no/such/file.mp4")
    remote.handle(f"/image {Path(__file__)}")
    remote.handle("What?")
    text = said(remote)
    assert "/clear" in text and "no command /nonsense" in text and "cannot be read (No such file" in text
    assert "error: " in text.splitlines()[-1], "a file that is no picture is told by the worker"
    assert remote.messages == [], "a question without an answer is taken back"
    remote.handle("/clear")
    assert remote._media == []


def test_a_conversation_from_lines(remote):
    lines = iter(["", f"/video '{CLIP}'", QUESTION, "/quit", "never"])
    remote.run(lambda prompt: next(lines))
    assert len(remote.messages) == 2 and next(lines) == "never"

    def end(prompt):
        raise EOFError

    remote.run(end)


def test_options_of_videos_go_with_them(remote):
    remote.media_options = {"num_frames": 2}
    remote.handle(f"/video {CLIP}")
    assert remote._media[0]["mm_processor_kwargs"] == {"num_frames": 2}


def test_which_model(controller, tiny_worker):
    with pytest.raises(ConfigError, match=r"\(none\)"):
        RemoteChat(controller.url).choose_model()
    register(controller, tiny_worker, "one")
    with StrangeWorker(lambda *_: asyncio.sleep(0)) as other:
        register(controller, other, "two")
        with pytest.raises(ConfigError, match="one, two"):
            RemoteChat(controller.url).choose_model()
        assert RemoteChat(controller.url, "two").choose_model() == "two"
        given = iter(["", "3", "none", "2"])
        out = io.StringIO()
        assert RemoteChat(controller.url, out=out).choose_model(lambda _: next(given)) == "two"
        assert "1  one" in out.getvalue() and "2  two" in out.getvalue()
        assert RemoteChat(controller.url, out=out).choose_model(lambda _: "one") == "one"


def test_errors_are_one_line_and_code_2(capsys):
    assert main(["--controller", f"http://127.0.0.1:{free_port()}"]) == 2
    captured = capsys.readouterr().err
    assert captured.startswith("cli: error: ") and captured.count("\n") == 1
    with pytest.raises(SystemExit):
        main(["--controller", "localhost"])


def test_a_key_is_shown(tmp_path):
    key = tmp_path / "key"
    key.write_text("alpha\n")
    with ControllerThread(Security(api_keys=("alpha",))) as server:
        assert main(["--controller", server.url]) == 2
        assert main(["--controller", server.url, "--api-key-file", str(key), "--model", "x"]) == 2


@pytest.mark.slow
def test_ctrl_c_stops_the_answer_and_not_the_program(controller):
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
        register(controller, worker, MODEL)
        with Terminal("videollama2.serve.cli", "--controller", controller.url) as terminal:
            terminal.wait_for("> ")
            terminal.type("first\n")
            terminal.wait_for("[first]")
            terminal.process.send_signal(signal.SIGINT)
            terminal.wait_for("(stopped)")
            assert worker.left.wait(PATIENCE_S)
            terminal.type("second\n")
            terminal.wait_for("[second]")
            terminal.type("/quit\n")
            assert terminal.process.wait(PATIENCE_S) == 0


# What runs in the background ignores Ctrl-C, and what it starts as well. Python's own handler is set again in the new
# process: code between fork and exec could wait for ever for a lock that another thread held.
_WITH_CTRL_C = (
    "import runpy, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)


class Terminal:
    """A module that runs as a program in a terminal of its own."""

    def __init__(self, module, *arguments):
        ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", _WITH_CTRL_C, module, *arguments],
            cwd=ROOT,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        self._ours, self._text, self._new = ours, "", threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(PATIENCE_S)

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

    def wait_for(self, text, seconds=PATIENCE_S):
        """Until it is on the screen; what stands before it is forgotten."""
        deadline = time.monotonic() + seconds
        with self._new:
            while text not in self._text:
                assert self._new.wait(max(0.0, deadline - time.monotonic())), f"{text!r} is not in {self._text!r}"
            self._text = self._text.partition(text)[2]
