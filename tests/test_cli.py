"""The command line as a person meets it: real processes, one-line errors, exit code 2, no traceback without --debug."""

import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from tests.conftest import ROOT, golden_dir
from tests.helpers.forked import run_python
from videollama2 import cli

MODEL = str(golden_dir() / "models" / "qwen2-stc_connector-clip")
MEDIA = golden_dir() / "media"


def run(*arguments, cwd=None):
    return run_python(["-m", "videollama2", *arguments], cwd or ROOT)


def test_ask_answers_like_the_published_code_and_prints_nothing_else(tmp_path):
    row = next(
        r
        for r in json.loads((golden_dir() / "end_to_end.json").read_text())
        if r["model"] == "qwen2-stc_connector-clip" and r["file"] == "landscape_30fps_90f.mp4"
    )
    done = run("ask", MEDIA / row["file"], row["question"], "--model-path", MODEL, "--max-new-tokens", 24, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == row["answer"] + "\n"
    assert done.stderr == ""


def ask(capsys, *arguments):
    """The command in this process: the same code, without paying for the imports again."""
    code = cli.main(["ask", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_options_reach_the_model(capsys):
    answers = set()
    for extra in ([], ["--start", 1, "--end", 2], ["--num-frames", 7]):
        code, out, err = ask(
            capsys, MEDIA / "landscape_30fps_90f.mp4", "What?", "--model-path", MODEL, "--max-new-tokens", 24, *extra
        )
        assert code == 0, err
        answers.add(out)
    assert len(answers) > 1
    code, out, _ = ask(
        capsys,
        MEDIA / "wide.png",
        "What?",
        "--model-path",
        MODEL,
        "--max-new-tokens",
        3,
        "--temperature",
        0.7,
        "--top-p",
        0.5,
        "--seed",
        4,
    )
    assert code == 0


@pytest.fixture
def bad_files(tmp_path):
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "notes.mp4").write_text("This is a shopping list.\n" * 100)
    whole = (MEDIA / "landscape_30fps_90f.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "corrupt.jpg").write_bytes((MEDIA / "tall.jpg").read_bytes()[:300])
    (tmp_path / "noconfig").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "fine.png")
    return tmp_path


VIDEO = "{media}/landscape_30fps_90f.mp4"


@pytest.mark.parametrize(
    ("media", "options", "names", "rule"),
    [
        ("{bad}/missing.mp4", [], "missing.mp4", "no such|not exist"),
        ("{bad}/empty.mp4", [], "empty.mp4", "empty"),
        ("{bad}/notes.mp4", [], "notes.mp4", ""),
        ("{bad}/cut.mp4", [], "cut.mp4", ""),
        ("{bad}/corrupt.jpg", [], "corrupt.jpg", ""),
        (VIDEO, ["--start", 99], "landscape_30fps_90f.mp4", "99"),
        (VIDEO, ["--start", 2, "--end", 1], "", "start"),
        (VIDEO, ["--num-frames", 0], "", "num_frames|frames"),
        (VIDEO, ["--num-frames", 10**9], "", "num_frames|frames"),
        (VIDEO, ["--model-path", "/no/such/model"], "/no/such/model", ""),
        (VIDEO, ["--model-path", "{bad}/noconfig"], "noconfig", ""),
        (VIDEO, ["--temperature", -1], "", "temperature"),
        (VIDEO, ["--max-new-tokens", 0], "", "max_new_tokens"),
        ("{bad}/fine.png", ["--start", 1], "fine.png", "--start"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, bad_files, media, options, names, rule):
    import re

    fill = {"bad": str(bad_files), "media": str(MEDIA)}
    options = [str(o).format(**fill) for o in options]
    if "--model-path" not in options:
        options += ["--model-path", MODEL]
    code, out, err = ask(capsys, media.format(**fill), "What?", *options)
    assert code == 2
    assert out == ""
    assert err.startswith("videollama2: error: ") and err.count("\n") == 1, err
    assert names in err
    assert re.search(rule, err), err


def test_empty_question(capsys):
    code, _, err = ask(capsys, MEDIA / "wide.png", "  ", "--model-path", MODEL)
    assert code == 2 and "question is empty" in err


def test_a_question_that_is_no_utf8(tmp_path):
    """Bytes of another encoding, as a shell hands them over. The model must not be loaded for it."""
    question = os.fsdecode("Où ?".encode("latin-1"))
    done = run("ask", MEDIA / "wide.png", question, "--model-path", "/no/such/model", cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == ("videollama2: error: the question is not valid UTF-8: character 2 is '\\udcf9'\n")


@pytest.mark.parametrize(
    ("media", "model", "names", "rule"),
    [
        ("{long}.mp4", MODEL, "{long}.mp4", "cannot be opened"),
        ("{folder}/{long}.png", MODEL, "{long}.png", "cannot be opened"),
        (VIDEO, "{long}", "{long}", "model_path cannot be opened"),
        (VIDEO, "{folder}/{long}", "{folder}/{long}", "model_path cannot be opened"),
        ("", MODEL, "path of the video or image", "is empty"),
        (VIDEO, "", "model_path", "is empty"),
        ("{folder}/two\nlines.mp4", MODEL, "two lines.mp4", "no such"),
    ],
)
def test_paths_that_cannot_be(capsys, tmp_path, media, model, names, rule):
    fill = {"long": "a" * 5000, "folder": str(tmp_path), "media": str(MEDIA)}
    code, out, err = ask(capsys, media.format(**fill), "What?", "--model-path", model.format(**fill))
    assert code == 2 and out == ""
    assert err.startswith("videollama2: error: ") and err.count("\n") == 1
    assert names.format(**fill) in err and rule in err
    assert err.count(fill["long"]) <= 1, "the name is said twice"


def test_debug_shows_the_traceback():
    done = run("ask", "missing.mp4", "What?", "--model-path", MODEL, "--debug")
    assert done.returncode != 0
    assert "Traceback" in done.stderr and "MediaNotFoundError" in done.stderr


def test_help_needs_no_torch():
    code = (
        "import sys; sys.modules['torch'] = None; from videollama2.cli import build_parser; "
        "build_parser().format_help(); assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=ROOT)
