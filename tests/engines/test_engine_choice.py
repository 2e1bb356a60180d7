"""``videollama2 serve --engine``: wrong choices are told in one line before anything starts."""

from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="serving needs the extra serve")

from videollama2.cli import build_parser as build_serve_parser
from videollama2.cli import main
from videollama2.engines.ray.server import build_parser as build_ray_parser
from videollama2.engines.ray.server import models_of
from videollama2.serve import launch
from videollama2.serve.model_worker import build_parser
from videollama2.serve.worker.flags import engine_options


@pytest.mark.parametrize("engine", ["vllm", "ray"])
def test_an_engine_that_is_not_installed(engine: str, capsys: pytest.CaptureFixture[str]) -> None:
    if find_spec(engine) is not None:
        pytest.skip(f"{engine} is installed")
    assert main(["serve", "--engine", engine, "--no-page"]) == 2
    said = f"videollama2: error: --engine {engine} is not installed: pip install 'videollama2[{engine}]'\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max-replicas", "2"], "--max-replicas: only with --engine ray"),
        (["--replica-engine", "vllm"], "--replica-engine: only with --engine ray"),
        (["--engine", "ray", "--workers", "2"], "--workers: not with --engine ray"),
        (["--engine", "ray", "--engine-option", "dtype=half"], "dtype: an option of --engine vllm"),
    ],
)
def test_flags_of_another_engine(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", *flags]) == 2
    assert message in capsys.readouterr().err


def test_the_parts_on_ray_serve() -> None:
    flags = [
        "--engine",
        "ray",
        "--replica-engine",
        "vllm",
        "--model-path",
        "a",
        "--model-path",
        "b",
        "--host",
        "0.0.0.0",
    ]
    flags += [
        "--host",
        "0.0.0.0",
        "--tensor-parallel-size",
        "2",
        "--max-replicas",
        "3",
        "--max-frames",
        "9",
        "--cors-origin",
        "http://x",
    ]
    (api,), (page,) = launch._ray_parts(build_serve_parser("serve").parse_args(["serve", *flags]))
    assert api.arguments[1] == "videollama2.engines.ray.server" and api.ready_url == "http://127.0.0.1:8000/ready"
    first, second = models_of(build_ray_parser().parse_args(api.arguments[2:]))
    assert (first.model_path, second.model_path, first.host, first.port) == ("a", "b", "0.0.0.0", 8000)
    assert (first.engine, first.tensor_parallel_size, first.max_replicas, first.max_frames) == ("vllm", 2, 3, 9)
    assert first.cors_origin == ["http://x"]
    assert page.arguments[page.arguments.index("--controller") + 1] == "http://127.0.0.1:8000"


def test_a_batch_with_an_engine_that_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"custom_id": "a", "body": {"messages": [{"role": "user", "content": "Hello"}]}}')
    command = [
        "batch",
        str(source),
        str(tmp_path / "out.jsonl"),
        "--model-path",
        "videollama2-tiny",
        "--engine",
        "vllm",
    ]
    assert main([*command, "--load-4bit"]) == 2
    assert "--load-4bit is for the own engine" in capsys.readouterr().err
    if find_spec("vllm") is None:
        assert main(command) == 2
        assert "pip install 'videollama2[vllm]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "world", "message"),
    [
        (["--max-replicas", "2"], "1", "--max-replicas: only with --engine ray"),
        (["--tensor-parallel-size", "2"], "1", "tensor_parallel_size: an option of --engine vllm"),
        (["--engine", "ray", "--engine-option", "dtype=half"], "1", "dtype: an option of --engine vllm"),
        (["--engine", "ray", "--replica-engine", "vllm", "--load-8bit"], "1", "--load-8bit is for the own engine"),
        (["--engine", "ray"], "2", "--engine ray shares the work among the machines of its cluster"),
    ],
)
def test_flags_of_a_batch_without_effect(
    flags: list[str],
    world: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WORLD_SIZE", world)
    assert main(["batch", "in.jsonl", str(tmp_path / "out.jsonl"), *flags]) == 2
    assert message in capsys.readouterr().err


def test_a_batch_without_ray(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if find_spec("ray") is not None:
        pytest.skip("ray is installed")
    assert main(["batch", "in.jsonl", str(tmp_path / "out.jsonl"), "--engine", "ray"]) == 2
    assert "--engine ray is not installed: pip install 'videollama2[ray]'" in capsys.readouterr().err


@pytest.mark.parametrize("flag", [["--tensor-parallel-size", "2"], ["--engine-option", "dtype=half"]])
def test_the_own_engine_has_no_such_flag(flag: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", *flag]) == 2
    assert "an option of --engine vllm" in capsys.readouterr().err


def test_values_of_engine_options() -> None:
    given = ["a=1", "b=true", "c=fp8", 'd={"x": [1]}', "e=0.5", "f=x=y"]
    arguments = [part for value in given for part in ("--engine-option", value)]
    options = engine_options(build_parser().parse_args([*arguments, "--tensor-parallel-size", "4"]))
    assert options == {
        "a": 1,
        "b": True,
        "c": "fp8",
        "d": {"x": [1]},
        "e": 0.5,
        "f": "x=y",
        "tensor_parallel_size": 4,
    }


def test_an_engine_option_without_a_value(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(["--engine-option", "dtype"])
    assert "expected NAME=VALUE" in capsys.readouterr().err
