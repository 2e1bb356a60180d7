"""Data as people download them: folders, columns and endings of the hub are read in place."""

import json
import re
import shutil

import pytest

from tests.eval.helpers.reference import benchmarks_dir, cases_dir
from videollama2.errors import DataError
from videollama2.eval.__main__ import main
from videollama2.eval.benchmarks import benchmark
from videollama2.eval.downloads.video_files import VideoFolder
from videollama2.media.frames import uniform_indices
from videollama2.media.video import open_video

pytestmark = pytest.mark.usefixtures("without_charts")

pytest.importorskip("pyarrow")
LAYOUTS = cases_dir() / "hub_layouts"


def load(layout, name, **options):
    found = benchmark(name).configure(**options)
    return found, found.load(LAYOUTS / layout)


def ours(name):
    found = benchmark(name)
    return found.load(benchmarks_dir() / found.folder)


@pytest.mark.parametrize(
    ("layout", "name", "questions"),
    [
        ("videomme_hub", "videomme", 18),
        ("videomme_endings", "videomme", 18),
        ("egoschema_hub", "egoschema", 2),
        ("egoschema_strings", "egoschema", 4),
        ("egoschema_shortened", "egoschema", 1),
        ("perception_official", "perception_test", 6),
        ("activitynet_hub", "activitynet_qa", 6),
        ("activitynet_types", "activitynet_qa", 6),
        ("videochatgpt_hub", "videochatgpt", 3),
        ("msvc_bom", "msvc", 3),
    ],
)
def test_every_question_is_that_of_our_layout_and_every_video_is_there(layout, name, questions, capsys):
    _, items = load(layout, name)
    assert len(items) == questions
    known = {(item.id, item.instruction, item.category): item for item in ours(name)}
    for item in items:
        same = known[item.id, item.instruction, item.category]
        assert (item.answer, item.options, item.question) == (same.answer, same.options, same.question)
        assert (LAYOUTS / layout / item.media).is_file()
    assert main(["check", name, "--data", str(LAYOUTS / layout)]) == 0
    assert "all files are there" in capsys.readouterr().out


def test_subtitles_are_found_and_counted(capsys):
    found, items = load("videomme_hub", "videomme", subtitles="published")
    text = [found.instructions(item, LAYOUTS / "videomme_hub", 8)[0] for item in items]
    head = "This video's subtitles are listed below:\n"
    assert sum(not each.startswith(f"{head}\n") for each in text) == 12  # three questions about each of four videos
    assert main(["check", "videomme", "--data", str(LAYOUTS / "videomme_hub")]) == 0
    assert "subtitles for 4 of 6 videos" in capsys.readouterr().out


@pytest.fixture
def videomme(tmp_path):
    """The hub's layout, to change."""
    shutil.copytree(LAYOUTS / "videomme_hub", tmp_path / "data")
    for path in (tmp_path / "data").rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    (tmp_path / "data").chmod(0o755)
    return tmp_path / "data"


@pytest.mark.parametrize("ending", [".en-US.srt", ".SRT", ".EN.SRT", ".vtt"])
@pytest.mark.parametrize("folder", ["subtitles", "subtitle"])
def test_subtitles_have_many_names(videomme, folder, ending):
    (videomme / "subtitle").rename(videomme / folder) if folder != "subtitle" else None
    for path in (videomme / folder).iterdir():
        path.rename(path.with_name(path.stem + ending))
    found = benchmark("videomme").configure(subtitles="seen")
    items = found.load(videomme)
    (subtitles,) = found.supplements(items, videomme)
    assert (subtitles.found, subtitles.of) == (4, 6)
    found.check_texts(items, videomme)
    assert sum("subtitles are listed" in found.instructions(item, videomme, 8)[0] for item in items) == 12


def run(data, output, *more):
    options = ("--model-path", "videollama2-tiny", "--device", "cpu", "--max-new-tokens", "4", "--no-progress")
    return main(["run", "videomme", "--data", str(data), "--output", str(output), *options, *more])


@pytest.mark.slow
def test_seen_subtitles_are_those_of_the_frames_that_are_shown(videomme, tmp_path):
    """Spread by number, the first and the last frame are among them; by time, those amid four stretches of the clip."""
    found = benchmark("videomme")
    video = videomme / found.load(videomme)[0].media
    with open_video(video) as reader:
        times, count, length = reader.times, reader.num_frames, reader.duration
    spans = [[f"00:00:{max(second + by, 0):06.3f}" for by in (-0.002, 0.002)] for second in times]
    cues = [f"{i}\n{' --> '.join(span)}\nframe {i}\n" for i, span in enumerate(spans)]
    (videomme / "subtitle" / f"{video.stem}.srt").write_text("\n".join(cues))
    for sampling, indices in {
        "index": uniform_indices(count, 4),
        "time": [max(i for i in range(count) if times[i] <= length * part / 8 + 1e-6) for part in (1, 3, 5, 7)],
    }.items():
        options = ("--subtitles", "seen", "--sampling", sampling, "--num-frames", "4", "--limit", "1")
        assert run(videomme, tmp_path / sampling, *options) == 0
        sample = json.loads((tmp_path / sampling / "samples.jsonl").read_text().splitlines()[0])
        assert re.findall(r"^frame (\d+)$", sample["instruction"], re.M) == [str(i) for i in indices]


def test_no_subtitles_at_all_are_an_error_where_they_are_asked_for(videomme, tmp_path, capsys):
    shutil.rmtree(videomme / "subtitle")
    assert run(videomme, tmp_path / "out", "--subtitles", "--limit", "1") == 2
    error = capsys.readouterr().err
    assert "subtitles (VIDEOID.srt) are missing for all of" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["1\n00:00:01,000 --> 00:00:02,000\ncafé\n".encode("latin-1"), b"\x00\x01garbage"])
def test_subtitles_that_cannot_be_used_are_told_before_the_first_question(videomme, tmp_path, capsys, content):
    path = sorted((videomme / "subtitle").iterdir())[-1]
    path.write_bytes(content)
    assert run(videomme, tmp_path / "out", "--subtitles") == 2
    assert path.name in capsys.readouterr().err
    assert not [line for file in (tmp_path / "out" / "answers").glob("*.jsonl") for line in file.read_text()]
    assert main(["check", "videomme", "--data", str(videomme), "--subtitles"]) == 2
    assert path.name in capsys.readouterr().err


@pytest.mark.slow
def test_the_report_counts_subtitles(videomme, tmp_path):
    assert run(videomme, tmp_path / "out", "--subtitles") == 0
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    assert report["supplements"] == [{"name": "subtitles", "found": 4, "of": 6}]
    assert report["questions"] == {"asked": 18, "total": 18, "offset": 0, "official": 2700}
    text = (tmp_path / "out" / "results.md").read_text()
    assert "- subtitles for 4 of 6 videos\n" in text and "- questions: 18 of 2,700 questions\n" in text


def test_the_corrected_archive_of_mvbench_is_read(tmp_path):
    source = benchmarks_dir() / "mvbench"
    shutil.copytree(source / "json", tmp_path / "json")
    shutil.copytree(source / "video", tmp_path / "video")
    (tmp_path / "video").chmod(0o755)
    for root in ("data0613", "video/data0613"):
        (tmp_path / root).mkdir()
        (tmp_path / "video" / "star").chmod(0o755)
        (tmp_path / "video" / "star").rename(tmp_path / root / "star")
        items = benchmark("mvbench").load(tmp_path)
        assert all((tmp_path / item.media).exists() for item in items)
        assert sum(item.media.startswith(f"{root}/star/") for item in items) == 6
        (tmp_path / root / "star").rename(tmp_path / "video" / "star")
        (tmp_path / root).rmdir()


def test_a_video_is_found_whatever_its_name_ends_with(tmp_path):
    for name in ("a.MP4", "b.m4v", "c.TS", "d.mpg", "e.avi", "e.mkv", "f.txt"):
        (tmp_path / "videos").mkdir(exist_ok=True)
        (tmp_path / "videos" / name).touch()
    videos = VideoFolder(tmp_path, "clips", "videos")
    found = [videos.find(stem) for stem in "abcdef"]
    ends = ["a.MP4", "b.m4v", "c.TS", "d.mpg", "e.avi"]
    assert found == [*(f"videos/{end}" for end in ends), "clips/f.mp4"]  # a missing one is named in our own place
    assert videos.find_path("./b.mp4") == "videos/b.m4v"
    assert videos.find_path("none/x.mp4") == "clips/none/x.mp4"


def test_what_is_missing_is_called_missing(tmp_path):
    with pytest.raises(DataError, match=r"test-00000-of-00001\.parquet: is missing \(as are videomme/"):
        benchmark("videomme").load(tmp_path)
    with pytest.raises(DataError, match=r"generic_qa\.json: is missing \(as are Generic/test-\*\.parquet\)"):
        benchmark("videochatgpt").load(tmp_path)
