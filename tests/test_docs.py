"""What README and docs/ tell people to type works: the Python runs, the commands exist, the picture is current."""

import re
import shlex
from dataclasses import fields

import numpy as np
import pytest

from tests.conftest import ROOT, golden_audio_dir
from tests.helpers.forked import run_python
from videollama2.shapes.encoding import encode_video
from videollama2.training.arguments import DataArguments, ModelArguments, TrainingArguments

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = "\n".join(page.read_text() for page in PAGES)
TINY = "videollama2/assets/videollama2-tiny"
CLIP = "videollama2/assets/demo/moving_shapes.mp4"
PYTHON = list(dict.fromkeys(re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)))
SHELL = "\n".join(re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)).replace("\\\n", " ")
COMMANDS = list(dict.fromkeys(line for line in SHELL.splitlines() if line.strip()))


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_python_runs(number):
    code = PYTHON[number].replace("/path/to/checkpoint", TINY).replace('"clip.mp4"', f'"{CLIP}"')
    done = run_python(["-c", code])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.slow
@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("videollama2 ")])
def test_commands_take_these_options(line, tmp_path):
    """Published weights are not at hand: what names them must at least be understood up to looking for them."""
    (tmp_path / "clip.mp4").write_bytes(encode_video(np.zeros((120, 64, 64, 3), np.uint8)))  # 10 seconds
    (tmp_path / "song.wav").symlink_to(golden_audio_dir() / "media" / "door_cut.wav")
    for folder in ("videollama2", "datasets", "scripts"):
        (tmp_path / folder).symlink_to(ROOT / folder)  # what a command writes stays here
    words = shlex.split(line, comments=True)[1:]
    done = run_python(["-m", "videollama2", *words], tmp_path)
    if "DAMO-NLP-SG" in line:
        assert done.returncode == 2 and "DAMO-NLP-SG" in done.stderr and "unrecognized" not in done.stderr, done.stderr
    else:
        assert done.returncode == 0, done.stderr


def test_files_named_in_commands_exist():
    for line in COMMANDS:
        for word in shlex.split(line, comments=True):
            if re.match(r"(scripts|benchmarks|videollama2)/\S+\.\w+$", word):
                assert (ROOT / word).exists(), line
            if word.startswith("benchmarks/") and word.endswith(".py"):
                assert '__name__ == "__main__"' in (ROOT / word).read_text(), f"{word} is not a command"


FLAG = re.compile(r"(?<![\w-])--[A-Za-z][\w-]*\b(?!\*)")
OF_OTHERS = {
    *(
        "--ntasks",
        "--address",
        "--backend",
        "--batch_size",
        "--config",
        "--constraint",
        "--generate",
        "--head",
        "--interleave-mm-strings",
        "--model_args",
    ),
    *("--limit-mm-per-prompt", "--max-num-batched-tokens", "--no-build-isolation", "--no-deps", "--nproc_per_node"),
    *("--profile", "--rm", "--target", "--tasks", "--tokenizer", "--trust-request-mm-kwargs", "--work-dir"),
}
"""Flags of programs that the pages name and that are not ours: pip, docker, ray, vllm, lmms-eval, torchrun."""


def test_flags_exist():
    sources = [
        path.read_text()
        for folder in ("videollama2", "benchmarks", "scripts")
        for path in (ROOT / folder).rglob("*.py")
    ]
    known = set(re.findall(r"[\"'](--[A-Za-z][\w-]*)[\"']", "\n".join(sources))) | OF_OTHERS
    known |= {f"--{flag.name}" for kind in (ModelArguments, DataArguments, TrainingArguments) for flag in fields(kind)}
    spelt = {flag.replace("_", "-") for flag in known}  # flags of training have both spellings
    unknown = {flag for flag in FLAG.findall(TEXT) if flag not in known and flag not in spelt}
    assert not unknown


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    prose = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)]+)\)", prose):
        if target.startswith("http"):
            continue
        path, _, heading = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{page.name} links to {target}"
        assert not heading or heading in headings(file), f"{page.name} links to {target}"


def headings(page):
    """The addresses of a page's headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    titles = re.findall(r"^#+ +(.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}


def test_picture_is_what_the_code_says():
    done = run_python(["scripts/draw_map.py", "--check"])
    assert done.returncode == 0, done.stderr
