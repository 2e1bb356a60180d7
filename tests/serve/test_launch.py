"""``videollama2 serve``: starting, watching and ending what belongs together."""

import argparse
import importlib
import importlib.util
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading

import httpx
import pytest
import torch

from tests.conftest import ROOT
from tests.helpers.ports import free_port
from tests.serve.helpers.servers import PATIENCE_S, http, wait_until
from videollama2.errors import ConfigError, VideoLlama2Error
from videollama2.serve import child_processes, launch, launch_checks
from videollama2.serve.child_processes import ChildProcess, Launcher, LaunchError
from videollama2.serve.launch import add_serve_command

SERVER = """
import os, socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    client, _ = listener.accept()
    with client:
        client.recv(65536)
        client.sendall(b"HTTP/1.0 200 OK\\r\\n\\r\\n%d" % os.getpid())
"""
"""A part that is ready at once, and tells who it is."""


PAGE = (ROOT / "docs" / "serve.md").read_text()
COMMANDS = "\n".join(re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)).replace("\\\n", " ").splitlines()
COMMANDS = [line for line in COMMANDS if line.strip()]
(PYTHON,) = (code for code in re.findall(r"```py\n(.*?)```", PAGE, re.DOTALL) if "OpenAI(" in code)


def part(name, code=SERVER, **options):
    port = free_port()
    return ChildProcess(
        name, ["-I", "-S", "-c", code, str(port)], f"http://127.0.0.1:{port}/", dict(os.environ), **options
    )


@pytest.fixture
def launcher(monkeypatch):
    monkeypatch.setattr(child_processes, "_TICK_S", 0.02)
    said = []
    found = Launcher(said.append)
    found.said = said
    yield found
    for started in found.parts:
        started.signal(signal.SIGKILL)
    found.end()


def arguments(*flags):
    parser = argparse.ArgumentParser()
    add_serve_command(parser.add_subparsers())
    return parser.parse_args(["serve", *flags])


@pytest.mark.slow
def test_parts_are_started_watched_and_ended_in_order(launcher):
    stages = [part(name) for name in ("controller", "worker a", "API", "page")]
    launcher.start(*stages)
    assert sorted(launcher.said) == sorted(f"{found.name} is ready" for found in stages)
    launcher.on_signal(signal.SIGINT, None)
    launcher.watch()
    launcher.end()
    assert all(found.process.poll() is not None for found in stages)


@pytest.mark.slow
def test_a_worker_that_dies_is_started_again(launcher):
    worker = part("worker a", may_restart=True)
    launcher.start(worker)
    first = int(http.get(worker.ready_url).text)
    os.kill(first, signal.SIGKILL)

    def is_back():
        launcher.look()
        return worker.is_ready()

    wait_until(lambda: worker.process.poll() is not None)
    wait_until(is_back)
    assert int(http.get(worker.ready_url).text) != first
    assert launcher.said[-1] == "worker a ended with signal SIGKILL; it is started again in 1 s"


def test_a_worker_that_keeps_dying_ends_all(launcher, monkeypatch):
    monkeypatch.setattr(child_processes, "RESTARTS", 0)
    worker = part("worker a", may_restart=True)
    launcher.start(worker)
    worker.signal(signal.SIGKILL)
    with pytest.raises(LaunchError, match="worker a ended with signal SIGKILL"):
        launcher.watch()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["controller", "API", "page"])
def test_anything_else_that_dies_ends_all(launcher, name):
    found = part(name)
    launcher.start(found)
    found.signal(signal.SIGTERM)
    with pytest.raises(LaunchError, match=f"{name} ended with signal SIGTERM"):
        launcher.watch()


@pytest.mark.slow
def test_a_part_that_does_not_start_ends_all(launcher):
    with pytest.raises(LaunchError, match="worker a ended with exit code 2"):
        launcher.start(part("controller"), part("worker a", "raise SystemExit(2)", may_restart=True))


def test_a_signal_ends_the_waiting(launcher):
    threading.Timer(0.1, launcher.on_signal, (signal.SIGINT, None)).start()
    launcher.start(part("worker a", "import time; time.sleep(60)"))
    launcher.on_signal(signal.SIGINT, None)  # the second one: at once
    launcher.end()
    assert launcher.parts[0].process.returncode == -signal.SIGKILL


def test_what_is_started_knows_the_operators_flags(tmp_path, monkeypatch):
    key = tmp_path / "keys"
    key.write_text("alpha\n")
    args = arguments(
        "--model-path",
        "videollama2-tiny",
        "--model-path",
        "/models/other",
        "--workers",
        "2",
        "--host",
        "0.0.0.0",
        "--api-key-file",
        str(key),
        "--media-root",
        str(tmp_path),
        "--allowed-media-hosts",
        "cdn.example.com",
        "--dtype",
        "float32",
        "--max-queue",
        "9",
        "--log-prompts",
        "--cors-origin",
        "https://a.example",
        "--load-4bit",
    )
    (controller,), (*workers, api), (page,) = launch._parts(args)
    assert [worker.name for worker in workers] == [
        "worker videollama2-tiny on port 40000",
        "worker videollama2-tiny on port 40001",
        "worker other on port 40002",
        "worker other on port 40003",
    ]
    from videollama2.serve import controller as controller_module
    from videollama2.serve import model_worker, openai_api

    found = model_worker.build_parser().parse_args(workers[2].arguments[2:])
    assert (found.model_path, found.port, found.worker) == ("/models/other", 40002, "http://127.0.0.1:40002")
    assert found.host == "127.0.0.1" and found.controller == "http://127.0.0.1:10000"
    assert found.media_root == tmp_path and found.allowed_media_hosts == ["cdn.example.com"]
    assert found.dtype == "float32" and found.max_queue == 9 and found.log_prompts and found.load_4bit
    assert str(found.api_key_file) == str(key)
    found = controller_module.build_parser().parse_args(controller.arguments[2:])
    assert found.host == "127.0.0.1" and str(found.api_key_file) == str(key)
    found = openai_api.build_parser().parse_args(api.arguments[2:])
    assert found.host == "0.0.0.0" and found.cors_origin == ["https://a.example"]
    from videollama2.serve import gradio_web_server

    found = gradio_web_server.build_parser().parse_args(page.arguments[2:])
    assert found.host == "0.0.0.0" and found.port == 7860
    tokens = {started.environment["VIDEOLLAMA2_WORKER_TOKEN"] for started in (controller, *workers, api)}
    assert len(tokens) == 1 and len(tokens.pop()) >= 32
    assert not any("alpha" in text for started in (controller, *workers, api, page) for text in started.arguments)


def test_models_need_names_of_their_own():
    with pytest.raises(ConfigError, match="one name"):
        launch._parts(arguments("--model-path", "/a/model", "--model-path", "/b/model"))


@pytest.fixture
def free():
    """Flags with free ports for an installation without a page."""
    names = ("--api-port", "--controller-port", "--worker-port")
    return [word for name in names for word in (name, str(free_port()))] + ["--no-page"]


@pytest.mark.parametrize(
    ("flags", "rule"),
    [
        (["--model-path", "/nowhere"], "/nowhere: there is no such folder"),
        (["--model-path", "setup.py"], "setup.py is a file; a checkpoint is a folder or a hub name"),
        (["--model-path", "docs"], "docs holds neither config.json nor adapter_config.json, so it is not a checkpoint"),
        (["--model-path", "someone/nothing"], "the cache .* does not hold it, and HF_HUB_OFFLINE is set"),
        (["--model-base", "/nowhere"], "/nowhere: there is no such folder"),
        (
            ["--host", "203.0.113.7"],
            r"--api-port: cannot listen on 203\.0\.113\.7:\d+: Cannot assign requested address",
        ),
        (["--worker-port", "65535", "--workers", "2"], "--worker-port: the last of the workers would have port 65536"),
    ],
)
def test_what_is_wrong_is_told_before_anything_starts(monkeypatch, free, flags, rule):
    """By the launcher itself, in one line. A part that had failed would be a LaunchError."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(VideoLlama2Error, match=rule) as raised:
        launch.run(arguments("--model-path", "videollama2-tiny", *free, *flags))
    assert not isinstance(raised.value, LaunchError) and "\n" not in str(raised.value)


def test_ports_that_are_taken_are_told_before_anything_starts(free):
    given = ["--model-path", "videollama2-tiny", *free]
    port = given[given.index("--api-port") + 1]
    with pytest.raises(ConfigError, match=f"--api-port and --controller-port have one port, {port}"):
        launch.run(arguments(*given, "--controller-port", port))
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = str(other.getsockname()[1])
        with pytest.raises(ConfigError, match=f"--worker-port: cannot listen on 127.0.0.1:{taken}"):
            launch.run(arguments(*given, "--worker-port", taken))
        # On Ray, Serve's own proxy may have the port, for all applications of its cluster.
        launch_checks.check_ports(arguments(*given, "--engine", "ray", "--api-port", taken))
        with pytest.raises(ConfigError, match=f"--api-port: cannot listen on 127.0.0.1:{taken}"):
            launch_checks.check_ports(arguments(*given, "--api-port", taken))


def test_an_account_file_is_read_before_anything_starts(tmp_path, free):
    (tmp_path / "accounts").write_text("nobody")
    flags = [word for word in free if word != "--no-page"] + ["--port", str(free_port())]
    with pytest.raises(ConfigError, match="line 1: is not 'user:password'"):
        launch.run(arguments("--model-path", "videollama2-tiny", *flags, "--auth-file", str(tmp_path / "accounts")))


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is such a device")
def test_a_device_is_tried_before_anything_starts(free):
    with pytest.raises(ConfigError, match="device 'cuda' cannot be used here"):
        launch.run(arguments("--model-path", "videollama2-tiny", *free, "--device", "cuda"))


@pytest.mark.parametrize("line", COMMANDS)
def test_the_readme_names_flags_that_exist(line):
    words = shlex.split(line, comments=True)
    if words[0] == "videollama2":
        assert arguments(*words[2:]).run is launch.run
    else:
        module = importlib.import_module(words[2])
        assert words[:2] == ["python", "-m"] and module.build_parser().parse_args(words[3:])


@pytest.mark.slow
def test_the_whole(tmp_path):
    """As an operator starts it: questions are answered, Ctrl-C ends all, nothing is left behind."""
    ports = [free_port() for _ in range(3)]
    log = tmp_path / "log"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("wb") as file:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "videollama2",
                "serve",
                "--model-path",
                "videollama2-tiny",
                "--no-page",
                "--api-port",
                str(ports[0]),
                "--controller-port",
                str(ports[1]),
                "--worker-port",
                str(ports[2]),
                "--decode-processes",
                "1",
            ],
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=file,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    try:
        wait_until(lambda: "Ctrl-C ends all." in log.read_text() or process.poll() is not None, 240)
        assert f"http://127.0.0.1:{ports[0]}/v1" in log.read_text()
        body = {"model": "videollama2-tiny", "messages": [{"role": "user", "content": "Why?"}], "max_tokens": 4}
        reply = http.post(f"http://127.0.0.1:{ports[0]}/v1/chat/completions", json=body)
        assert reply.status_code == 200, reply.text
        if importlib.util.find_spec("openai"):
            code = PYTHON.replace(":8000/", f":{ports[0]}/")
            done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
            assert done.stdout.strip(), done.stderr
        forged = {"worker_name": "http://127.0.0.1:1", "worker_status": {"model_names": ["videollama2-tiny"]}}
        assert http.post(f"http://127.0.0.1:{ports[1]}/register_worker", json=forged).status_code == 401
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 0
        for port in ports:
            with pytest.raises(httpx.ConnectError):
                http.get(f"http://127.0.0.1:{port}/health")
        assert "Traceback" not in log.read_text()
    finally:
        if process.poll() is None:
            process.kill()


def test_parts_end_with_a_launcher_that_is_killed(tmp_path):
    port = free_port()
    code = (
        "import os, sys\nfrom videollama2.serve.child_processes import Launcher, ChildProcess\n"
        f"url, code = 'http://127.0.0.1:{port}/', {SERVER!r}\n"
        f"part = ChildProcess('controller', ['-c', code, '{port}'], url, dict(os.environ))\n"
        "launcher = Launcher(print)\nlauncher.start(part)\nlauncher.watch()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL)

    def is_there():
        try:
            return http.get(f"http://127.0.0.1:{port}/").status_code == 200
        except httpx.HTTPError:
            return False

    wait_until(is_there)
    process.kill()
    process.wait(PATIENCE_S)
    wait_until(lambda: not is_there())
