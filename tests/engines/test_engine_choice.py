"""``videollama2 serve --engine``: wrong choices are told in one line before anything starts."""

from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="serving needs the extra serve")

from videollama2.cli import main
from videollama2.serve.model_worker import build_parser
from videollama2.serve.worker.flags import engine_options


def test_an_engine_that_is_not_installed(capsys: pytest.CaptureFixture[str]) -> None:
    if find_spec("vllm") is not None:
        pytest.skip("vLLM is installed")
    assert main(["serve", "--engine", "vllm", "--no-page"]) == 2
    assert "--engine vllm is not installed: pip install 'videollama2[vllm]'" in capsys.readouterr().err


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
