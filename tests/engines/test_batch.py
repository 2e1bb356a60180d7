"""``videollama2 batch``: what the API would answer, line by line, whatever happens in between."""

import base64
import json
import os
import random
import shutil
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="batches go through the worker's application (the extra serve)")

from tests.conftest import ROOT
from tests.helpers import forked
from videollama2.cli import main
from videollama2.engines.batch_lines import read_requests
from videollama2.errors import DataError

DEMO = ROOT / "videollama2" / "assets" / "demo"
CLIP, PICTURE = DEMO / "moving_shapes.mp4", DEMO / "shapes.png"
COLOUR, COUNT = "Which colour does the square change to?", "How many objects can be seen?"
TINY = ["--model-path", "videollama2-tiny"]

# Requests of the batch that is killed; BATCH_LINES=2000 takes some minutes.
LINES = int(os.environ.get("BATCH_LINES", "600"))


def request(name: str, *content: dict, **body: object) -> dict:
    messages = [{"role": "user", "content": list(content)}]
    return {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": {"messages": messages, **body}}


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def video(url: str) -> dict:
    return {"type": "video_url", "video_url": {"url": url}}


def write(path: Path, *lines: dict) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def replies(path: Path) -> dict[str, dict]:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {line["custom_id"]: line for line in lines}


def answer(line: dict) -> str:
    return line["response"]["body"]["choices"][0]["message"]["content"]


def test_paths_data_and_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A path relative to the file, an absolute one, data, a model of another name; a bad request is a line too."""
    (tmp_path / "clip.mp4").write_bytes(CLIP.read_bytes())
    data = "data:video/mp4;base64," + base64.b64encode(CLIP.read_bytes()).decode()
    source = write(
        tmp_path / "in.jsonl",
        request("relative", video("clip.mp4"), text(COLOUR), model="gpt-4o"),
        request("missing", video("nowhere.mp4"), text(COLOUR)),
        request("absolute", text(COLOUR), video(CLIP.as_uri())),
        request("data", video(data), text(COLOUR), max_tokens=1),
        {**request("unknown path", text("Hi")), "url": "/v1/nothing"},
        request("half a character \ud800", text("\ud800")),
        request("no number", text("Hi"), temperature=float("nan")),
        request("stream", text("Hi"), stream=True),
        {**request("no route for requests", text("Hi")), "url": "/v1/models"},
    )
    refused = ["half a character \ud800", "no number", "stream", "no route for requests"]
    target = tmp_path / "out.jsonl"
    assert main(["batch", str(source), str(target), *TINY]) == 1
    assert "3 of 9 requests answered, 6 with an error" in capsys.readouterr().out
    lines = replies(target)
    assert list(lines) == ["relative", "missing", "absolute", "data", "unknown path", *refused]
    assert all(lines[name]["response"]["status_code"] in (400, 405) and lines[name]["error"] for name in refused)
    assert lines["stream"]["error"]["message"] == "'stream': an answer of a batch comes whole"
    assert answer(lines["relative"]) == answer(lines["absolute"]) == "yellow"
    assert lines["data"]["response"]["body"]["usage"]["completion_tokens"] == 1
    assert lines["missing"]["response"]["status_code"] == 400
    assert "nowhere.mp4" not in lines["relative"]["response"]["body"]["choices"][0]["message"]["content"]
    assert lines["missing"]["error"]["message"]
    assert lines["unknown path"]["response"]["status_code"] == 404

    # A finished run asks nothing again, also not what failed; --retry-failed does.
    before = target.read_text()
    assert main(["batch", str(source), str(target), *TINY]) == 1
    assert target.read_text() == before
    (tmp_path / "nowhere.mp4").write_bytes(CLIP.read_bytes())
    assert main(["batch", str(source), str(target), *TINY, "--retry-failed"]) == 1
    again = replies(target)
    assert answer(again["missing"]) == "yellow"
    assert again["relative"] == lines["relative"]


def test_one_question_about_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "media"
    (folder / "deep").mkdir(parents=True)
    (folder / "clip.mp4").write_bytes(CLIP.read_bytes())
    (folder / "deep" / "picture.png").write_bytes(PICTURE.read_bytes())
    (folder / "notes.txt").write_text("no medium")
    (folder / "empty.mp4").touch()
    (folder / "page.jpg").write_text("<!DOCTYPE html><html></html>")
    target = tmp_path / "captions.jsonl"
    assert main(["batch", str(folder), str(target), "--question", COUNT, *TINY]) == 1
    lines = replies(target)
    told = {name: lines.pop(name)["error"]["message"] for name in ("empty.mp4", "page.jpg")}
    assert "is empty" in told["empty.mp4"] and "cannot be read" in told["page.jpg"], "each fails alone"
    assert set(lines) == {"clip.mp4", "deep/picture.png"}
    assert all(answer(line) for line in lines.values())
    pattern = tmp_path / "more.jsonl"
    assert main(["batch", str(folder / "**" / "*.png"), str(pattern), "--question", COUNT, *TINY]) == 0
    (only,) = replies(pattern).values()
    assert answer(only) == answer(lines["deep/picture.png"])


def test_the_folder_as_a_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``--folder DIR`` stands in place of INPUT; OUTPUT may be left out, and flags may come between the words."""
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "picture.png").write_bytes(PICTURE.read_bytes())
    monkeypatch.chdir(tmp_path)
    asked = ["--question", COUNT, *TINY]
    assert main(["batch", "--folder", "media", *asked]) == 0
    assert main(["batch", "media", *asked, "other.jsonl"]) == 0
    assert answer(replies(Path("media.jsonl"))["picture.png"]) == answer(replies(Path("other.jsonl"))["picture.png"])
    capsys.readouterr()
    for words, told in (
        (["media"], "batch takes INPUT and OUTPUT, got media"),
        (["--folder", "media", "a.jsonl", "b.jsonl"], "at most one file, OUTPUT, beside --folder, got a.jsonl b.jsonl"),
        (["--folder", "nowhere"], "--folder: nowhere is not a folder"),
    ):
        assert main(["batch", *words, *asked]) == 2
        assert told in capsys.readouterr().err


def test_parquet_in_and_out(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = {
        "id": ["a", "b"],
        "video": [{"bytes": CLIP.read_bytes(), "path": "clip.mp4"}, {"bytes": CLIP.read_bytes(), "path": None}],
        "question": [COLOUR, "What is the shape of the white object?"],
    }
    parquet.write_table(pyarrow.table(rows), tmp_path / "in.parquet")
    target = tmp_path / "out.parquet"
    assert main(["batch", str(tmp_path / "in.parquet"), str(target), *TINY]) == 0
    table = parquet.read_table(target).to_pylist()
    assert [(row["custom_id"], row["answer"]) for row in table] == [("a", "yellow"), ("b", "cross")]
    assert [row["status_code"] for row in table] == [200, 200]


def test_columns_of_media(tmp_path: Path) -> None:
    """The file tells images from videos; under ``audio``, a video is heard; a preview beside a video is left out."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    sounding = (DEMO / "sounding_shapes.mp4").read_bytes()
    for name, content in (("clip.mp4", CLIP.read_bytes()), ("sounding.mp4", sounding)):
        (tmp_path / name).write_bytes(content)
    rows = [
        {"video": "clip.mp4", "image": "preview.png"},
        {"image": "clip.mp4"},
        {"audio": "sounding.mp4"},
    ]
    table = {name: [row.get(name) for row in rows] for name in ("video", "image", "audio")}
    parquet.write_table(pyarrow.table(table), tmp_path / "paths.parquet")
    stored = {"audio": [{"bytes": sounding, "path": None}]}
    parquet.write_table(pyarrow.table(stored), tmp_path / "bytes.parquet")

    def kinds(name: str) -> list[str]:
        lines = read_requests(str(tmp_path / name), "What is it?")
        return [line.body["messages"][0]["content"][0]["type"] for line in lines]

    assert kinds("paths.parquet") == ["video_url", "video_url", "audio_url"]
    assert kinds("bytes.parquet") == ["audio_url"]
    parquet.write_table(pyarrow.table({"film": ["clip.mp4"]}), tmp_path / "none.parquet")
    with pytest.raises(DataError, match=r"row 1: needs a body, or a medium \(video, image, audio\) and a question"):
        read_requests(str(tmp_path / "none.parquet"), "What is it?")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "line 1: is not JSON"),
        ("[]", "line 1: is not a request"),
        ('{"custom_id": "a"}', "line 1: is not a request"),
        ('{"custom_id": "", "body": {}}', "custom_id must be a text"),
        ('{"custom_id": "a", "body": {}, "method": "GET"}', "method must be POST"),
        ('{"custom_id": "a", "body": {}, "url": "chat"}', "url must be a path"),
        ('{"custom_id": "a", "body": {}}\n{"custom_id": "a", "body": {}}', "'a' appears twice"),
        ("", "holds no requests"),
        ('{"custom_id": "a", "body": {}, "url": "/v1/a#b"}', "url must be a path"),
        ('{"custom_id": "a", "body": {"messages": [{"image_url": "a\\u0000"}]}}', "line 1: is not a request"),
        ('{"custom_id": "a", "body": {"messages": ' + "[" * 990 + "]" * 990 + "}}", "line 1: is not"),
    ],
)
def test_bad_files_are_told(tmp_path: Path, content: str, told: str) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=told):
        read_requests(str(path), None)


def test_rows_of_media_and_bodies(tmp_path: Path) -> None:
    """Lists of media, ``datasets``' structs of a path alone, bodies as structs, names that are missing."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    image = PICTURE.read_bytes()

    def bodies(table: object) -> dict[str, dict]:
        parquet.write_table(table, tmp_path / "in.parquet")
        return {line.custom_id: line.body for line in read_requests(str(tmp_path / "in.parquet"), "What?")}

    stored = [[{"bytes": image, "path": None}, {"bytes": None, "path": str(PICTURE)}]]
    (body,) = bodies(pyarrow.table({"images": stored, "custom_id": pyarrow.array([None], pyarrow.string())})).values()
    assert [part["type"] for part in body["messages"][0]["content"]] == ["image_url", "image_url", "text"]
    asked = [{"messages": [{"role": "user", "content": "Hi"}], "seed": seed} for seed in (1, None)]
    assert bodies(pyarrow.table({"body": asked})) == {"1": asked[0], "2": {"messages": asked[0]["messages"]}}
    for odd in ("[1]", "5", '"messages"'):
        with pytest.raises(DataError, match=r"in.parquet, row 1: body is not a JSON object"):
            bodies(pyarrow.table({"body": [odd]}))


def test_another_run_in_the_same_place_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Other requests, and other weights of the same name; a command with a slip reserves nothing."""
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write(source, request("a", text("Hi"), max_tokens=1))
    model = tmp_path / "model"
    shutil.copytree(ROOT / "videollama2" / "assets" / "videollama2-tiny", model)
    command = ["batch", str(source), str(target), "--model-path", str(model)]
    assert main([*command, "--dtype", "bfloat16", "--max-batch", "0"]) == 2
    assert main(command) == 0
    capsys.readouterr()
    for change, told in (
        (lambda: (model / "extra.json").write_text("{}"), "model_revision: 'sha256:"),
        (lambda: write(source, request("a", text("Ho"), max_tokens=1)), "requests: "),
    ):
        change()
        assert main(command) == 2
        error = capsys.readouterr().err
        assert "holds answers of another configuration" in error and told in error


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["in.jsonl", "in.jsonl"], "in.jsonl is INPUT too"),
        (["in.jsonl", "answers.csv"], "OUTPUT must end with one of .jsonl"),
        (["in.jsonl", "folder.jsonl"], "folder.jsonl: is a folder"),
        (["in.jsonl", "out.jsonl", "--max-new-tokens", "0"], "--max-new-tokens (max_new_tokens) must be at least 1"),
        (["in.jsonl", "out.jsonl", "--num-frames", "0"], "num_frames 0 is outside 1 to"),
        (["in.jsonl", "out.jsonl", "--question", "What?"], "--question: the requests of in.jsonl have questions"),
        (["in.jsonl", "out.jsonl", "--model-path", "nowhere"], "nowhere"),
    ],
)
def test_slips_are_told_before_anything_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "in.jsonl", request("a", text("Hi")))
    (tmp_path / "folder.jsonl").mkdir()
    assert main(["batch", *TINY, *words]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1
    assert not list(tmp_path.glob("*.work"))


def test_a_file_that_is_named_like_a_pattern(tmp_path: Path) -> None:
    clip = tmp_path / "clip[1].mp4"
    clip.write_bytes(CLIP.read_bytes())
    (line,) = read_requests(str(clip), COUNT)
    assert line.custom_id == clip.as_posix()
    addresses = (f"file://{clip}", clip.as_uri(), clip.name)
    source = write(tmp_path / "in.jsonl", *(request(url, video(url)) for url in addresses))
    parts = [line.body["messages"][0]["content"][0] for line in read_requests(str(source), None)]
    assert parts == [video(clip.as_uri())] * 3


@pytest.mark.slow
def test_three_processes_killed_five_times_equal_one_that_was_not(tmp_path: Path) -> None:
    lines = [request(f"r{number}", text(f"What is {number}?"), max_tokens=2) for number in range(LINES)]
    source = write(tmp_path / "in.jsonl", *lines)
    whole, target = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    assert main(["batch", str(source), str(whole), *TINY]) == 0

    def start(rank: int) -> BaseProcess:
        variables = {"RANK": str(rank), "WORLD_SIZE": "3"}
        return forked.start("videollama2.cli", ["batch", str(source), str(target), *TINY], tmp_path / "log", variables)

    def written(rank: int) -> int:
        path = tmp_path / "out.jsonl.work" / "answers" / f"rank-{rank:05d}-of-00003.jsonl"
        return path.read_bytes().count(b"\n") if path.is_file() else 0

    def kill(rank: int, further: int) -> None:
        """Kill a process once it has written so many further lines, or all of its share, and start it again."""
        enough = min(written(rank) + further, len(lines[rank::3]))
        while written(rank) < enough:
            assert running[rank].is_alive()
            time.sleep(0.01)
        forked.kill(running[rank])
        running[rank].join()
        running[rank] = start(rank)

    chance = random.Random(3)
    running = {rank: start(rank) for rank in range(3)}
    for rank in running:
        kill(rank, chance.randrange(1, LINES // 30))
    for rank in sorted(running, key=written)[:2]:  # those that are furthest from their end
        kill(rank, chance.randrange(1, LINES // 30))
    for process in running.values():
        process.join(timeout=600)
    assert [process.exitcode for process in running.values()] == [0, 0, 0]
    asked_again = sum(written(rank) for rank in range(3)) - len(lines)
    assert asked_again == 0  # a line that is done is never done twice
    one, other = replies(whole), replies(target)
    assert list(one) == list(other)
    assert [answer(line) for line in one.values()] == [answer(line) for line in other.values()]
