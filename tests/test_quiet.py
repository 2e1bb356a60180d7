"""What libraries print stays out of the output of commands, and their bars are for terminals."""

import io
import json
import logging
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.helpers.forked import run_python
from videollama2 import quiet
from videollama2.constants import TINY_MODEL_NAME

DEMO = ROOT / "videollama2" / "assets" / "demo"
PICTURE = str(DEMO / "shapes.png")
TINY = ("--model-path", TINY_MODEL_NAME)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("quiet")
    turns = [{"from": "human", "value": "<image>\nHow many?"}, {"from": "gpt", "value": "three"}]
    (found / "train.json").write_text(json.dumps([{"id": "1", "image": "shapes.png", "conversations": turns}]))
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    request = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": body}
    (found / "requests.jsonl").write_text(json.dumps(request) + "\n")
    return found


def commands(folder):
    """Every command that opens or writes a model, in the order in which one needs the result of another."""
    ask = ("ask", PICTURE, "How many objects can be seen?", "--max-new-tokens", "2", *TINY)
    training = ("--data_path", folder / "train.json", "--data_folder", DEMO, "--output_dir", folder / "lora")
    training += ("--max_steps", "1", "--per_device_train_batch_size", "1", "--lora_enable", "True", "--use_cpu", "True")
    return (
        ("videollama2", *ask),
        ("videollama2.train", "--model_path", TINY_MODEL_NAME, *training),
        ("videollama2", "merge", folder / "lora", folder / "merged"),
        ("videollama2", "export", folder / "lora", folder / "exported"),
        ("videollama2", "inspect", *ask[1:], "--output", folder / "page.html"),
        ("videollama2", "batch", folder / "requests.jsonl", folder / "answers.jsonl", *TINY),
        ("videollama2", "plan", "--model", TINY_MODEL_NAME),
        ("videollama2", "data", "check", folder / "train.json", "--data-folder", DEMO, *TINY),
        ("videollama2", "chat", *TINY),
    )


@pytest.mark.slow
def test_nothing_that_a_library_prints_reaches_a_pipe(folder):
    """transformers is imported before these commands begin, as in a program that calls one of them."""
    told = {}
    for module, *arguments in commands(folder):
        done = run_python(["-m", module, *arguments], input="/quit\n")
        assert done.returncode == 0, (module, arguments, done.stderr)
        told[module, arguments[0]] = done.stderr + "".join(line for line in done.stdout.splitlines() if "it/s" in line)
    assert {command: text for command, text in told.items() if text} == {}


@pytest.mark.slow
def test_libraries_that_a_command_imports_are_quiet_too(folder):
    arguments = ["-m", "videollama2", "export", TINY_MODEL_NAME, folder / "alone"]
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith(f"written to {folder / 'alone'}.") and done.stdout.count("\n") == 1


@pytest.fixture
def terminal(monkeypatch):
    """A standard error that says whether it is a terminal, and no wish in the environment."""
    for name in ("TRANSFORMERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS"):
        monkeypatch.delenv(name, raising=False)

    def is_one(value):
        stream = io.StringIO()
        monkeypatch.setattr(stream, "isatty", lambda: value, raising=False)
        monkeypatch.setattr(sys, "stderr", stream)  # here, as pytest puts its own there between fixture and test

    return is_one


@pytest.mark.parametrize("is_terminal", [True, False])
@pytest.mark.parametrize("debug", [True, False])
def test_bars_are_for_terminals_and_hints_for_who_looks_for_a_fault(terminal, is_terminal, debug):
    from transformers.utils import logging as library

    terminal(is_terminal)
    before = (library.get_verbosity(), library.is_progress_bar_enabled(), dict(os.environ))
    with quiet.quiet_libraries(debug):
        assert library.is_progress_bar_enabled() is (is_terminal and before[1])
        assert (library.get_verbosity() == logging.ERROR) is (not debug)
        assert os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS") == (None if is_terminal else "1")
        assert (logging.getLogger("bitsandbytes").level == logging.ERROR) is (not debug)
    assert (library.get_verbosity(), library.is_progress_bar_enabled(), dict(os.environ)) == before


def test_what_the_user_wishes_is_kept(terminal, monkeypatch):
    from transformers.utils import logging as library

    terminal(False)
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "0")
    before = (library.get_verbosity(), library.is_progress_bar_enabled())
    with quiet.quiet_libraries():
        quiet.hide_library_bars()
        assert (library.get_verbosity(), library.is_progress_bar_enabled()) == before
        assert os.environ["TRANSFORMERS_VERBOSITY"] == "info"
