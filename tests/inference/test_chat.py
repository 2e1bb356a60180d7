"""``videollama2 chat``: commands, follow-ups, faults, and Ctrl-C on a real process."""

import io
import signal
import subprocess
import threading

import pytest

from tests.conftest import ROOT, golden_dir
from videollama2 import model_init
from videollama2.inference.chat import Chat
from videollama2.inference.engine import Engine

DEMO = ROOT / "videollama2" / "assets" / "demo"
FIRST = "Which object moves first, the white cross or the red circle?"


@pytest.fixture(scope="module")
def tiny():
    return model_init("videollama2-tiny")[:2]


def converse(tiny, *lines, **options):
    out = io.StringIO()
    chat = Chat(Engine(*tiny, max_batch=1, background=False), {}, {"max_new_tokens": 16, **options}, out)
    waiting = iter(lines)

    def read(prompt):
        line = next(waiting, EOFError)
        if isinstance(line, type):
            raise line
        return line

    chat.run(read)
    return chat, out.getvalue()


def test_a_conversation_about_a_video(tiny):
    chat, text = converse(tiny, f"/video {DEMO / 'moving_shapes.mp4'}", FIRST, "What is the shape of the white object?")
    assert "8 frames" in text and "the red circle\n" in text and text.rstrip().endswith("cross")
    roles = [message["role"] for message in chat.messages]
    assert roles == ["user", "assistant", "user", "assistant"]
    # The second turn prefilled only what was new.
    again = chat.engine.submit(chat.messages[:3], max_new_tokens=4).result()
    assert again.cached_tokens > 0


def test_clear_forgets_and_media_go_with_the_next_question(tiny):
    question = "Where is the red cross?"
    chat, text = converse(tiny, f"/image '{DEMO / 'shapes.png'}'", question, "/clear", question)
    assert "top right" in text
    assert len(chat.messages) == 2 and isinstance(chat.messages[0]["content"], str)


def test_faults_are_told_and_the_conversation_goes_on(tiny, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_text("no picture")
    _, text = converse(
        tiny,
        "/video /no/such.mp4",
        f"/image {bad}",
        "/frobnicate",
        KeyboardInterrupt,
        "Hello " * 2000,
        f"/image {DEMO / 'shapes.png'}",
        "Where is the red cross?",
        "/quit",
        "never read",
    )
    assert "error: /no/such.mp4" in text and "bad.png" in text and "no command /frobnicate" in text
    assert "do not fit" in text and "top right" in text


@pytest.mark.slow
def test_ctrl_c_stops_the_answer_and_not_the_program(python_of_forks):
    model = golden_dir() / "models" / "qwen2-stc_connector-clip"
    # Longer than the pipe takes: the answer cannot end before it is stopped, however slow this test is.
    command = [
        python_of_forks,
        "-m",
        "videollama2",
        "chat",
        "--model-path",
        str(model),
        "--max-length",
        "90000",
        "--max-new-tokens",
        "80000",
    ]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    guard = threading.Timer(120, process.kill)
    guard.start()
    try:
        process.stdin.write("what moves\n")
        process.stdin.flush()
        seen = ""
        while "> " not in seen or len(seen.split("> ", 1)[1]) < 20:
            char = process.stdout.read(1)
            assert char, process.stderr.read()
            seen += char
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate("/quit\n")
    finally:
        guard.cancel()
    assert process.returncode == 0, errors
    assert "(stopped)" in rest and "Traceback" not in errors
