"""``ask``: words and flags in any order, several media, the standard input, JSON; without a network; warnings."""

import io
import json
import os
import subprocess
import sys
import threading
import time

import pytest

from tests.conftest import ROOT, write_cut_video
from tests.helpers.forked import run_python
from videollama2 import cli, hub_connection
from videollama2.errors import CheckpointNotFoundError

DEMO = ROOT / "videollama2" / "assets" / "demo"
CLIP, PICTURE = str(DEMO / "moving_shapes.mp4"), str(DEMO / "shapes.png")
TINY = ("--model-path", "videollama2-tiny")
COUNT = "How many objects can be seen?"


def ask(capsys, *arguments):
    code = cli.main(["ask", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        (CLIP, PICTURE, COUNT, *TINY, "--system", "Be brief.", "--json"),
        ("--system", "Be brief.", CLIP, *TINY, PICTURE, "--json", COUNT),
        (*TINY, "--json", CLIP, "--attach", PICTURE, "--system", "Be brief.", "--", COUNT),
        ("--attach", CLIP, "--attach", PICTURE, COUNT, "--json", *TINY, "--system", "Be brief."),
    ],
)
def test_words_and_flags_in_any_order_are_one_question(capsys, arguments):
    code, out, err = ask(capsys, *arguments)
    assert code == 0 and err == ""
    answer = json.loads(out)
    assert answer["media"] == [{"type": "video", "path": CLIP}, {"type": "image", "path": PICTURE}]
    assert answer["question"] == COUNT and answer["model"] == "videollama2-tiny"
    assert answer["answer"] and answer["finish_reason"] == "stop"
    assert answer["usage"]["prompt_tokens"] == _prompt_tokens() and answer["usage"]["completion_tokens"] >= 1
    assert set(answer["seconds"]) == {"load", "media", "first_token", "answer"}


def _prompt_tokens():
    """Of the same conversation, counted from Python."""
    from videollama2 import Engine, model_init

    model, processor, _ = model_init("videollama2-tiny")
    parts = [{"type": "video", "path": CLIP}, {"type": "image", "path": PICTURE}, {"type": "text", "text": COUNT}]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}]
    with Engine(model, processor, max_batch=1, background=False) as engine:
        return engine.submit(messages, max_new_tokens=1).result().prompt_tokens


def test_the_question_may_come_from_the_standard_input(capsys, monkeypatch):
    _, spoken, _ = ask(capsys, PICTURE, COUNT, *TINY)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{COUNT}\n".encode())))
    code, piped, _ = ask(capsys, *TINY, PICTURE, "-")
    assert code == 0 and piped == spoken


@pytest.mark.parametrize(
    ("arguments", "stdin", "words"),
    [
        ((), b"", "there is no question: videollama2 ask MEDIA ... QUESTION"),
        ((CLIP,), b"", f"there is no question beside '{CLIP}'"),
        ((COUNT,), b"", f"there is no video or image beside '{COUNT}'"),
        ((CLIP, "-"), b" \n", "the question is empty"),
        ((CLIP, "-"), "Où ?".encode("latin-1"), "the question on the standard input is not valid UTF-8"),
        ((PICTURE, COUNT, "--start", "1"), b"", "shapes.png is an image; --start can only be given for a video"),
    ],
)
def test_what_is_missing_is_said(capsys, monkeypatch, arguments, stdin, words):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
    code, out, err = ask(capsys, *arguments, *TINY)
    assert code == 2 and out == ""
    assert words in err and err.count("\n") == 1


def test_bounds_hold_for_every_video_and_not_for_images(capsys):
    """One image among the media does not refuse them."""
    code, out, _ = ask(capsys, CLIP, PICTURE, COUNT, *TINY, "--num-frames", 2, "--json")
    assert code == 0
    fewer = json.loads(out)["usage"]["prompt_tokens"]
    _, out, _ = ask(capsys, CLIP, PICTURE, COUNT, *TINY, "--json")
    assert fewer < json.loads(out)["usage"]["prompt_tokens"]


def test_without_a_network_and_without_the_model_one_line_comes_soon(tmp_path):
    """An address of this machine where nobody listens stands for the hub: no name is looked up, nothing answers."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    environment = {name: value for name, value in environment.items() if not name.lower().endswith("_proxy")}
    command = [sys.executable, "-m", "videollama2", "ask", PICTURE, "What?"]
    begin = os.times()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    end = os.times()
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert "DAMO-NLP-SG/VideoLLaMA2-7B is not a folder, the cache" in done.stderr
    assert "http://127.0.0.1:9 cannot be reached" in done.stderr
    # Of the processor, as other work beside must not fail it: torch is not even imported.
    assert (end.children_user + end.children_system) - (begin.children_user + begin.children_system) < 3


class TestReach:
    @pytest.fixture(autouse=True)
    def no_memory(self):
        hub_connection.why_unreachable.cache_clear()
        yield
        hub_connection.why_unreachable.cache_clear()

    def test_a_server_that_never_answers(self, monkeypatch):
        import socket

        monkeypatch.setattr(hub_connection, "PATIENCE_S", 0.2)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            begin = time.monotonic()
            assert hub_connection.why_unreachable(f"http://127.0.0.1:{silent.getsockname()[1]}")
            assert time.monotonic() - begin < 5

    def test_a_server_that_says_no_is_there(self):
        from http.server import BaseHTTPRequestHandler, HTTPServer

        class Refusing(BaseHTTPRequestHandler):
            def do_HEAD(self):
                self.send_error(403)

            def log_message(self, *_):
                pass

        with HTTPServer(("127.0.0.1", 0), Refusing) as server:
            threading.Thread(target=server.handle_request, daemon=True).start()
            assert hub_connection.why_unreachable(f"http://127.0.0.1:{server.server_port}") is None

    def test_a_cached_model_is_opened_from_the_cache(self, tmp_path, monkeypatch):
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        repository = tmp_path / "models--someone--model"
        (repository / "snapshots" / "abc").mkdir(parents=True)
        (repository / "snapshots" / "abc" / "config.json").write_text("{}")
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("abc")
        options = hub_connection.hub_options("someone/model", cache_dir=tmp_path)
        assert options == {"cache_dir": tmp_path, "local_files_only": True}
        with pytest.raises(CheckpointNotFoundError, match="someone/other is not a folder"):
            hub_connection.hub_options("someone/other", cache_dir=tmp_path)
        assert hub_connection.hub_options(tmp_path) == {}, "a folder"
        assert hub_connection.hub_options("a/b", local_files_only=True) == {"local_files_only": True}

    @pytest.mark.parametrize("command", [["plan", "--model"], ["export"]])
    def test_every_command_says_so_in_one_line(self, tmp_path, monkeypatch, capsys, command):
        """The client of the hub would try each file for half a minute and tell of each try."""
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        place = [str(tmp_path / "out")] if command == ["export"] else []
        assert cli.main([*command, "someone/nothing", *place]) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1 and "http://127.0.0.1:9 cannot be reached" in told


def test_warnings_are_said_once_in_a_line(tmp_path):
    write_cut_video(CLIP, tmp_path / "cut.mkv")
    done = run_python(["-m", "videollama2", "ask", tmp_path / "cut.mkv", COUNT, *TINY])
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"videollama2: warning: {tmp_path}/cut.mkv: the file is damaged or truncated; its ")


def test_doctor(capsys):
    code = cli.main(["doctor", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert code == (1 if report["problems"] else 0)
    import av
    import torch

    assert report["software"]["torch"] == torch.__version__ and report["software"]["av"] == av.__version__
    assert "h264" in report["media"]["decoders"] and "WEBP" in report["media"]["image formats"]
    assert "GiB" in report["processor"]["memory"]
    assert cli.main(["doctor"]) == code
    text = capsys.readouterr().out
    assert all(f"\n{title}\n" in f"\n{text}" for title in report)


def test_doctor_tells_no_secrets(capsys, monkeypatch):
    for name in ("HF_TOKEN", "OPENAI_API_KEY", "VIDEOLLAMA2_API_KEY"):
        monkeypatch.setenv(name, "do-not-tell")
    cli.main(["doctor"])
    assert "do-not-tell" not in capsys.readouterr().out


def test_doctor_names_what_is_wrong(capsys, monkeypatch):
    import av

    monkeypatch.setattr(av, "codecs_available", av.codecs_available - {"hevc"})
    assert cli.main(["doctor"]) == 1
    assert "this build of av cannot decode hevc" in capsys.readouterr().out


@pytest.mark.parametrize("shell", cli.SHELLS)
def test_completion(capsys, shell):
    pytest.importorskip("shtab")
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(word in script for word in ("ask", "num-frames", "decode", "judge-model", "limit-model-concurrency"))


def test_completion_without_its_package(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert cli.main(["completion", "bash"]) == 2
    assert "completion needs shtab: pip install shtab" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["ask", "--help"], ["doctor", "--help"]])
def test_help_costs_little(arguments):
    """0.3 s on a quiet machine; counted in time of the processor, of which other work beside takes nothing."""
    begin = os.times()
    subprocess.run([sys.executable, "-m", "videollama2", *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    end = os.times()
    assert (end.children_user + end.children_system) - (begin.children_user + begin.children_system) < 0.6


def test_a_bar_is_shown_for_gigabytes_alone(tmp_path):
    from videollama2.ask import _is_large

    folders = {name: tmp_path / name for name in ("small", "large")}
    for name, size in (("small", 1 << 20), ("large", 1 << 30)):
        folders[name].mkdir()
        with open(folders[name] / "model.safetensors", "wb") as file:
            file.truncate(size)
    names = ("videollama2-tiny", "someone/on-the-hub", *map(str, folders.values()))
    assert [name for name in names if _is_large(name)] == ["someone/on-the-hub", str(folders["large"])]
