"""Downloads, zipped, nested, split or unpacked, become the layout that the benchmarks read."""

import json
import shutil
import tarfile
import unicodedata
import zipfile
from pathlib import Path

import pytest

from tests.eval.helpers.reference import benchmarks_dir, cases_dir
from videollama2.errors import ConfigError, DataError
from videollama2.eval.__main__ import main
from videollama2.eval.benchmarks import benchmark
from videollama2.eval.downloads.prepare import prepare

pytest.importorskip("pyarrow")
LAYOUTS = cases_dir() / "hub_layouts"


def zipped(target, source, inside=""):
    """The files of ``source``, below a folder ``inside``."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(Path(source).rglob("*")):
            if path.is_file():
                archive.write(path, f"{inside}{path.relative_to(source).as_posix()}")
    return target


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "name"),
    [
        ("videomme_hub", "videomme"),
        ("videomme_endings", "videomme"),
        ("egoschema_hub", "egoschema"),
        ("egoschema_strings", "egoschema"),
        ("egoschema_shortened", "egoschema"),
        ("perception_official", "perception_test"),
        ("activitynet_hub", "activitynet_qa"),
        ("activitynet_types", "activitynet_qa"),
        ("videochatgpt_hub", "videochatgpt"),
        ("msvc_bom", "msvc"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_every_layout_of_the_hub_is_laid_out(layout, name, packed, tmp_path, capsys):
    source = LAYOUTS / layout
    if packed:
        source = zipped(tmp_path / "hub" / "all.zip", source, "some/folder/").parent
    target = tmp_path / "data"
    assert main(["prepare", name, "--from", str(source), "--to", str(target)]) == 0
    said = capsys.readouterr().out
    found, there = benchmark(name), benchmark(name).load(LAYOUTS / layout)
    items = found.load(target)
    assert [(item.id, item.instruction, item.answer) for item in items] == [
        (item.id, item.instruction, item.answer) for item in there
    ]
    for mine, theirs in zip(items, there, strict=True):
        assert (target / mine.media).read_bytes() == (LAYOUTS / layout / theirs.media).read_bytes()
    videos = len({item.media for item in items})
    assert f"questions   {len(items)} (" in said and f"videos      {videos} of {videos}\n" in said
    assert ("subtitles   4 of 6 videos" in said) == (layout == "videomme_hub")
    assert main(["check", name, "--data", str(target)]) == 0
    assert not list(target.glob(".*"))


def test_video_mme_as_the_hub_has_it(tmp_path):
    """The table in its folder, the videos in several zip files, the subtitles in another."""
    hub, source = tmp_path / "hub", LAYOUTS / "videomme_hub"
    (hub / "videomme").mkdir(parents=True)
    shutil.copy(source / "videomme" / "test-00000-of-00001.parquet", hub / "videomme")
    videos = sorted((source / "data").iterdir())
    for number, part in enumerate((videos[:3], videos[3:]), start=1):
        folder = tmp_path / f"part{number}"
        folder.mkdir()
        for path in part:
            shutil.copy(path, folder)
        zipped(hub / f"videos_chunked_0{number}.zip", folder, "data/")
    zipped(hub / "subtitle.zip", source / "subtitle", "subtitle/")
    prepared = prepare(benchmark("videomme"), hub, tmp_path / "data")
    assert (prepared.questions, prepared.videos, prepared.missing) == (18, 6, [])
    assert prepared.supplements[0].found == 4
    found = benchmark("videomme").configure(subtitles="published")
    texts = [found.instructions(item, tmp_path / "data", 8) for item in found.load(tmp_path / "data")]
    assert texts == [found.instructions(item, source, 8) for item in found.load(source)]


def test_mvbench_with_zips_below_video_and_frames_in_folders(tmp_path):
    source, hub = benchmarks_dir() / "mvbench", tmp_path / "hub"
    shutil.copytree(source / "json", hub / "json")
    for folder in sorted((source / "video").iterdir()):
        zipped(hub / "video" / f"{folder.name}.zip", folder, f"{folder.name}/")
    target = tmp_path / "data"
    prepared = prepare(benchmark("mvbench"), hub, target)
    assert (prepared.questions, prepared.missing) == (40, [])
    for mine, ours in zip(benchmark("mvbench").load(target), benchmark("mvbench").load(source), strict=True):
        a, b = target / mine.media, source / ours.media
        names = sorted(path.name for path in b.iterdir()) if b.is_dir() else []
        assert sorted(path.name for path in a.iterdir()) == names if names else a.read_bytes() == b.read_bytes()


@pytest.mark.parametrize("names", [("videos.tar.part.aa", "videos.tar.part.ab"), ("videos.zip.001", "videos.zip.002")])
def test_a_split_archive_is_read_as_one(tmp_path, names):
    hub, source = tmp_path / "hub", LAYOUTS / "activitynet_hub"
    shutil.copytree(source / "data", hub / "data")
    whole = tmp_path / "whole"
    if ".tar" in names[0]:
        with tarfile.open(whole, "w") as archive:
            archive.add(source / "all_test", "all_test")
    else:
        zipped(whole, source / "all_test", "all_test/")
    content = whole.read_bytes()
    for name, part in zip(names, (content[:20_000], content[20_000:]), strict=True):
        (hub / name).write_bytes(part)
    assert prepare(benchmark("activitynet_qa"), hub, tmp_path / "data").missing == []


def test_archives_within_archives(tmp_path):
    inner = zipped(tmp_path / "inner" / "videos.zip", LAYOUTS / "perception_official" / "videos", "videos/")
    hub = tmp_path / "hub"
    zipped(hub / "all.zip", inner.parent)
    with zipfile.ZipFile(hub / "all.zip", "a") as archive:  # as macOS packs: for each file, another one about it
        archive.writestr("__MACOSX/._videos.zip", b"\0\5\26\7")
    shutil.copy(LAYOUTS / "perception_official" / "all_valid.json", hub)
    assert prepare(benchmark("perception_test"), hub, tmp_path / "data").missing == []
    assert not (tmp_path / "data" / ".unpacked").exists()


@pytest.mark.parametrize(("of_file", "of_question"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_names_with_accents_are_found_however_they_are_written(tmp_path, of_file, of_question):
    hub = tmp_path / "hub"
    (hub / "msvd").mkdir(parents=True)
    rows = json.loads((LAYOUTS / "msvc_bom" / "msvc.json").read_text(encoding="utf-8-sig"))[:1]
    name = "Café #1 視頻.mp4"
    shutil.copy(LAYOUTS / "msvc_bom" / rows[0]["video_path"], hub / "msvd" / unicodedata.normalize(of_file, name))
    rows[0]["video_path"] = f"msvd/{unicodedata.normalize(of_question, name)}"
    (hub / "msvc.json").write_text(json.dumps(rows), encoding="utf-8")
    assert prepare(benchmark("msvc"), hub, tmp_path / "data").missing == []
    assert (hub / benchmark("msvc").load(hub)[0].media).is_file()


def test_what_is_missing_is_named_and_comes_with_a_later_download(tmp_path, capsys):
    hub = tmp_path / "hub"
    shutil.copytree(LAYOUTS / "egoschema_hub", hub)
    for path in hub.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    lost = hub / "videos" / "c3d9b3b022b56be1.mp4"
    content = lost.read_bytes()
    (hub / "videos").chmod(0o755)
    lost.unlink()
    command = ["prepare", "egoschema", "--from", str(hub), "--to", str(tmp_path / "data")]
    assert main(command) == 1
    said = capsys.readouterr().out
    assert "videos      1 of 2\n" in said and f"{tmp_path}/data/good_clips_git/c3d9b3b022b56be1.mp4" in said
    lost.write_bytes(content)
    assert main(command) == 0


def test_an_archive_never_chooses_where_it_is_written(tmp_path):
    hub, target = tmp_path / "hub", tmp_path / "data"
    hub.mkdir()
    source = LAYOUTS / "msvc_bom"
    with zipfile.ZipFile(hub / "evil.zip", "w") as archive:
        archive.write(source / "msvc.json", "../../msvc.json")
        for path in sorted((source / "msvd").iterdir()):
            archive.write(path, f"/etc/../../{path.name}")
    assert prepare(benchmark("msvc"), hub, target).missing == []
    assert {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*")} == {"hub", "data"}


def test_refusals(tmp_path):
    (tmp_path / "hub").mkdir()
    with pytest.raises(DataError, match="the annotations of MSVC are missing"):
        prepare(benchmark("msvc"), tmp_path / "hub", tmp_path / "data")
    with pytest.raises(DataError, match="no such folder"):
        prepare(benchmark("msvc"), tmp_path / "nowhere", tmp_path / "data")
    with pytest.raises(ConfigError, match="moving_shapes cannot be prepared"):
        prepare(benchmark("moving_shapes"), tmp_path / "hub", tmp_path / "data")
    (tmp_path / "hub" / "videos.zip").write_bytes(b"PK no")
    with pytest.raises(DataError, match=r"videos\.zip: cannot be opened as an archive"):
        prepare(benchmark("msvc"), tmp_path / "hub", tmp_path / "data")
