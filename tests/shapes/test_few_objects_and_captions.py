"""Sets of the built-in world on disk: formats, balance, resuming after an interruption, refusals."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
from PIL import Image

from tests.conftest import ROOT
from tests.helpers.forked import run_python
from videollama2.data.records import read_records
from videollama2.errors import DataError
from videollama2.shapes import captions as moving_shapes_captions
from videollama2.shapes.questions import QUESTION_TYPES
from videollama2.shapes.scene import COLOURS, make_scene
from videollama2.shapes.sets import SetParameters, main, write_set

VIDEOS, IMAGES, SEED = 16, 6, 3


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    write_set(folder, VIDEOS, IMAGES, SEED, mcq_fraction=0.5)
    return folder


@pytest.fixture(scope="module")
def balanced(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("balanced")
    write_set(folder, 120, 0, 4, balanced_questions=103)
    return folder


def load(path: Path) -> list | dict:
    return json.loads(path.read_text(encoding="utf-8"))


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "videollama2.shapes.sets", *map(str, arguments)]


# ---- formats


def test_videos_are_readable_and_show_the_scene(written):
    for index in range(VIDEOS):
        scene = make_scene(SEED, index)
        with av.open(str(written / f"videos/{index:06d}.mp4")) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.average_rate) == ("h264", 12)
            frames_THWC = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
        assert frames_THWC.shape == (24, 128, 128, 3)
        for item in scene.objects:
            for frame in range(24):
                state = item.state(frame)
                if state is not None:
                    seen = frames_THWC[frame, int(state.y) - 1 : int(state.y) + 2, int(state.x) - 1 : int(state.x) + 2]
                    assert nearest(seen.mean((0, 1))) == state.colour, (index, frame)


def nearest(rgb: np.ndarray) -> str:
    return min(COLOURS, key=lambda name: np.abs(rgb - COLOURS[name]).sum())


def test_images_are_readable_and_show_the_scene(written):
    for index in range(IMAGES):
        scene = make_scene(SEED, index, "image")
        with Image.open(written / f"images/{index:06d}.png") as image:
            assert (image.mode, image.size) == ("RGB", (128, 128))
            for item in scene.objects:
                state = item.state(0)
                assert image.getpixel((int(state.x), int(state.y))) == COLOURS[state.colour]


def test_training_records(written):
    records = load(written / "train.json")
    assert len({record["id"] for record in records}) == len(records) == VIDEOS + IMAGES
    choices = 0
    for record in records:
        tag = "video" if "video" in record else "image"
        assert set(record) == {"id", tag, "conversations"} and (written / record[tag]).is_file()
        turns = record["conversations"]
        assert [turn["from"] for turn in turns] == ["human", "gpt"] * (len(turns) // 2) and 2 <= len(turns) <= 16
        assert turns[0]["value"].startswith(f"<{tag}>\n")
        assert sum(f"<{tag}>" in turn["value"] for turn in turns) == 1
        for ask, answer in zip(turns[::2], turns[1::2], strict=True):
            options = re.findall(r"^\([A-D]\) .+$", ask["value"], re.MULTILINE)
            choices += bool(options)
            if options:
                assert answer["value"] in options
                assert ask["value"].removeprefix(f"<{tag}>\n").startswith("Question: ")
                assert ask["value"].endswith("and only give the best option.")
            else:
                assert answer["value"] == answer["value"].lower()
    turns_in_all = sum(len(record["conversations"]) // 2 for record in records)
    assert 0.3 < choices / turns_in_all < 0.7
    assert len(read_records([written / "train.json"], written)) == len(records)


def test_question_rows_are_those_of_the_records(written):
    rows = load(written / "questions.json")
    assert len({row["id"] for row in rows}) == len(rows)
    asked = {}
    for row in rows:
        tag = "video" if "video" in row else "image"
        assert set(row) == {"id", tag, "type", "question", "answer", "candidates"}
        assert row["answer"] in row["candidates"] and row["type"] in QUESTION_TYPES
        asked.setdefault(row[tag], []).append(row["question"])
    for record in load(written / "train.json"):
        turns = record["conversations"][::2]
        questions = asked[record.get("video") or record["image"]]
        assert all(question in turn["value"] for question, turn in zip(questions, turns, strict=True))


def test_benchmark_layout(written):
    rows = [row for row in load(written / "questions.json") if "video" in row]
    found = Counter()
    for kind in QUESTION_TYPES:
        for entry in load(written / f"mvbench/json/{kind}.json"):
            assert set(entry) == {"video", "question", "candidates", "answer"}
            assert (written / "mvbench/video" / entry["video"]).is_file()
            found[kind] += 1
    assert found == Counter(row["type"] for row in rows)


def test_multiple_choice_fraction_of_none_and_all(tmp_path):
    for fraction, expected in ((0, {False}), (1, {True})):
        folder = tmp_path / str(fraction)
        write_set(folder, 2, seed=1, mcq_fraction=fraction)
        turns = [turn["value"] for record in load(folder / "train.json") for turn in record["conversations"][::2]]
        assert {"Options:" in turn for turn in turns} == expected


# ---- the same set every time


@pytest.mark.slow
def test_worker_processes_change_nothing_and_a_smaller_set_is_a_part(written, tmp_path):
    write_set(tmp_path / "two", VIDEOS, IMAGES, SEED, mcq_fraction=0.5, workers=2)
    assert tree(tmp_path / "two") == tree(written)
    write_set(tmp_path / "part", 3, 2, SEED, mcq_fraction=0.5)
    part, whole = tree(tmp_path / "part"), tree(written)
    names = [name for name in part if name.endswith((".mp4", ".png")) and not name.startswith("mvbench")]
    assert len(names) == 5 and all(part[name] == whole[name] for name in names)
    records = {record["id"]: record for record in load(written / "train.json")}
    assert all(records[record["id"]] == record for record in load(tmp_path / "part/train.json"))


KILLED = """
import os, signal, sys
from videollama2.shapes import sets

write_file, written = sets.write_file, []

def write_or_die(path, content):
    if len(written) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    write_file(path, content)
    if path.suffix == ".mp4":
        written.append(path)

sets.write_file = write_or_die
sys.exit(sets.main(sys.argv[1:]))
"""
"""The command, which kills itself instead of writing a sixth video."""


@pytest.mark.slow
def test_a_killed_run_is_finished_by_the_same_command(tmp_path):
    broken, fresh = tmp_path / "broken", tmp_path / "fresh"
    arguments = ("--videos", 12, "--images", 2, "--seed", 8)
    done = run_python(["-c", KILLED, "--out", broken, *arguments])
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert load(broken / "set.json")["complete"] is False
    assert not (broken / "train.json").exists()
    done = {path: path.stat().st_mtime_ns for path in (broken / "videos").glob("*.mp4")}
    assert len(done) == 5
    (broken / "videos/.000011.mp4.part").write_bytes(b"half")

    assert main(["--out", str(broken), *map(str, arguments)]) == 0
    write_set(fresh, 12, 2, 8)
    assert tree(broken) == tree(fresh)
    assert {path: path.stat().st_mtime_ns for path in done} == done


def _kill_a_worker_that_starts() -> None:
    """Kill the first process that this one spawns for a pool, while it still imports."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for child in psutil.Process().children():
            with suppress(psutil.Error):
                if any("spawn_main" in word for word in child.cmdline()):
                    child.kill()
                    return
        time.sleep(0.002)


def test_a_worker_that_dies_ends_the_command_and_the_same_one_finishes(tmp_path):
    killer = threading.Thread(target=_kill_a_worker_that_starts)
    killer.start()
    with pytest.raises(DataError, match="a process that writes the set died; the same command continues"):
        write_set(tmp_path, VIDEOS, 0, SEED, workers=2)
    killer.join()
    assert write_set(tmp_path, VIDEOS, 0, SEED)["complete"] is True


def test_running_again_changes_nothing(balanced):
    before = tree(balanced)
    write_set(balanced, 120, 0, 4, balanced_questions=103)
    assert tree(balanced) == before


# ---- balanced test sets


def test_balanced_set(balanced):
    rows = load(balanced / "questions.json")
    counts = Counter(row["type"] for row in rows)
    assert len(rows) == 103 and set(counts) == set(QUESTION_TYPES) and set(counts.values()) == {10, 11}
    assert load(balanced / "set.json")["questions"] == counts
    assert sum(len(load(balanced / f"mvbench/json/{kind}.json")) for kind in QUESTION_TYPES) == 103
    assert max(Counter(row["video"] for row in rows).values()) <= 2
    for kind in set(QUESTION_TYPES) - {"order"}:
        answers = Counter(row["answer"] for row in rows if row["type"] == kind)
        assert max(answers.values()) - min(answers.values()) <= 1, (kind, answers)
    order = [row for row in rows if row["type"] == "order"]
    first = sum(row["question"].split(" first, ")[1].startswith(row["answer"] + " or ") for row in order)
    assert abs(2 * first - len(order)) <= 1


def test_too_few_videos_for_the_balance(tmp_path):
    with pytest.raises(DataError, match="4000 balanced questions need more videos"):
        write_set(tmp_path, 5, seed=1, balanced_questions=4000)
    assert not (tmp_path / "questions.json").exists()
    assert load(tmp_path / "set.json")["complete"] is False


# ---- captions


@pytest.mark.parametrize("objects", [None, 1])
def test_captions_tell_what_the_files_show(tmp_path, objects):
    """Scenes are drawn again for them, by the parameters of the set: those must be the ones of its files."""
    write_set(tmp_path, videos=6, images=4, seed=8, mcq_fraction=0.0, scenario="direction", objects=objects)
    assert moving_shapes_captions.main(["--set", str(tmp_path)]) == 0
    captions, records = load(tmp_path / "captions.json"), load(tmp_path / "train.json")
    assert [row["id"] for row in captions] == [f"{row['id']}-caption" for row in records]
    counts, placed = set(), 0
    for row, record in zip(captions, records, strict=True):
        caption = row["conversations"][1]["value"]
        assert re.fullmatch(r"top left: [^.]+\. top right: [^.]+\. bottom left: [^.]+\. bottom right: [^.]+\.", caption)
        counts.add(4 - caption.count("nothing"))
        for ask, answer in zip(record["conversations"][::2], record["conversations"][1::2], strict=True):
            _, where, name = ask["value"].rstrip("?").rpartition("Where is the ")
            if where:
                placed += 1
                assert f"{answer['value']}: {name}" in caption
    assert placed
    assert counts == {1} if objects else counts > {1}


def test_captions_need_a_finished_set(tmp_path, capsys):
    assert moving_shapes_captions.main(["--set", str(tmp_path)]) == 2
    assert f"error: {tmp_path} holds no finished set" in capsys.readouterr().err


# ---- refusals


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"videos": 0}, "at least one file"),
        ({"videos": -1, "images": 4}, "videos=-1"),
        ({"videos": 1, "questions_per_item": 0}, "questions per item"),
        ({"videos": 1, "mcq_fraction": 1.5}, "1.5"),
        ({"videos": 1, "balanced_questions": 0}, "balanced questions"),
        ({"videos": 1, "objects": 5}, "objects must lie between 1 and 4, got 5"),
    ],
)
def test_parameters_that_make_no_set(values, message):
    with pytest.raises(DataError, match=message):
        SetParameters(**values)


def test_a_folder_with_another_set_is_refused(written, tmp_path, capsys):
    before = tree(written)
    with pytest.raises(DataError, match="seed = 3, not 4"):
        write_set(written, VIDEOS, IMAGES, 4, mcq_fraction=0.5)
    assert tree(written) == before
    assert main(["--out", str(written), "--videos", "5", "--seed", "3"]) == 2
    assert "videos = 16, not 5" in capsys.readouterr().err

    (tmp_path / "train.json").write_text("[]")
    with pytest.raises(DataError, match=re.escape(f"{tmp_path} holds a data set without set.json")):
        write_set(tmp_path, 1)
    (tmp_path / "set.json").write_text("{")
    with pytest.raises(DataError, match="not readable as JSON"):
        write_set(tmp_path, 1)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=re.escape(f"cannot use folder {tmp_path / 'file'}")):
        write_set(tmp_path / "file", 1)


LIMITED = """
import os, resource, sys
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
os.execv(sys.argv[2], sys.argv[2:])
"""
"""A program with a limit on the size of files. It is no fork of the tests with their threads, which might hang."""


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "culprit"), [(1000, r"videos/000000\.mp4"), (20_000, r"\w+\.json")])
def test_a_full_disk_names_the_file_and_leaves_none_by_halves(tmp_path, limit, culprit):
    """The limit on a file's size stands for the disk: first a video does not fit, then an annotation file."""
    words = command("--out", tmp_path / "set", "--videos", 60, "--seed", 2)
    run = subprocess.run(
        [sys.executable, "-ISc", LIMITED, str(limit), *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert run.returncode == 2, run.stderr
    last = run.stderr.strip().splitlines()[-1]
    assert re.search(rf"error: cannot write .*/{culprit}: File too large", last), last
    assert "Traceback" not in run.stderr
    left = tree(tmp_path / "set")
    assert "train.json" not in left and not [name for name in left if name.endswith(".part")]
    assert all(len(content) < limit for content in left.values())
    assert len(left) == 1 or limit == 20_000
