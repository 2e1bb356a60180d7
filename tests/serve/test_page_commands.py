"""The flags of the page's commands: what is wrong with them is told in one line."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from tests.serve.helpers.pages import needs_gradio
from videollama2.serve import gradio_web_server, gradio_web_server_adhoc

pytestmark = needs_gradio


@pytest.mark.parametrize(
    "flags",
    [
        ["--port", "70000"],
        ["--concurrency-count", "0"],
        ["--max-upload-mb", "-1"],
        ["--auth-file", "/nowhere"],
        ["--vote-log", "/proc/nowhere/votes"],
    ],
)
def test_wrong_flags_are_one_line(flags: list[str], capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    log = [] if "--vote-log" in flags else ["--vote-log", str(tmp_path / "votes")]
    assert gradio_web_server.main([*log, *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1


def test_a_model_there_is_not_is_one_line(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    flags = ["--model-path", str(tmp_path / "nothing"), "--vote-log", ""]
    assert gradio_web_server_adhoc.main(flags) == 2
    assert "nothing" in capsys.readouterr().err


@pytest.mark.slow
def test_a_port_that_is_taken_is_one_line(capsys: pytest.CaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert gradio_web_server.main(["--port", port, "--vote-log", ""]) == 2
    assert port in capsys.readouterr().err


def test_published_flags_are_understood() -> None:
    parser = gradio_web_server.build_parser()
    for name in ("--controller", "--controller-url"):
        args = parser.parse_args(
            [
                name,
                "http://localhost:10000",
                "--host",
                "0.0.0.0",
                "--port",
                "7861",
                "--concurrency-count",
                "10",
                "--model-list-mode",
                "reload",
                "--share",
            ]
        )
        assert args.controller == "http://localhost:10000"
    assert sys.modules["videollama2.serve.gradio_web_server"].__doc__
