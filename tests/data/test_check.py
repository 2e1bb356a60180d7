"""``videollama2 data check``: every problem with its record, files opened and decoded, counts and lengths."""

import gzip
import json

import pytest

from tests.conftest import golden_dir
from tests.data.helpers import CASES, run_check
from videollama2 import cli
from videollama2.data.check import check_files, histogram
from videollama2.shapes.sets import write_set


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("check")
    write_set(folder, videos=2, images=1, seed=3, questions_per_item=2, mcq_fraction=0.0)
    rows = json.loads((folder / "train.json").read_text())
    video = next(row["video"] for row in rows if "video" in row)
    talk = [{"from": "human", "value": "Is a circle a shape?"}, {"from": "gpt", "value": "yes"}]
    both = [{"from": "human", "value": "<video> or <video>?"}, {"from": "gpt", "value": "the first"}]
    rows += [{"id": "text", "conversations": talk}, {"id": "two", "video": [video] * 2, "conversations": both}]
    (folder / "good.json").write_text(json.dumps(rows))
    bad = [
        {"id": "gone", "video": "gone.mp4", "conversations": both[:1] + talk[1:]},
        {"id": "surplus", "video": video, "conversations": both},
        {"id": "untagged", "video": video, "conversations": talk},
        {"id": "odd", "conversations": talk[:1]},
    ]
    (folder / "bad.json").write_text(json.dumps([*rows, *bad]))
    (folder / "worst.json").write_text(json.dumps(bad))
    return folder


def test_good_file(world, capsys):
    assert run_check(world / "good.json", "--model-max-length", 60) == 0
    text = capsys.readouterr().out
    assert "5 records, 5 of them right: 1 image, 1 several media, 1 text only, 2 video" in text
    assert "media tokens per record" in text


def test_records_that_are_too_long(world, capsys):
    """Cut at the end they are usable, unless no answer is left: there training would stop."""
    rows = json.loads((world / "good.json").read_text())
    ask, answer = ({"from": name, "value": "word " * 60} for name in ("human", "gpt"))
    rows += [{"id": "late", "conversations": [ask, answer]}, {"id": "cut", "conversations": [ask, answer, ask, answer]}]
    (world / "long.json").write_text(json.dumps(rows))
    assert run_check(world / "long.json", "--model-max-length", 100) == 0
    text = capsys.readouterr().out
    assert "longer than the maximum, to be cut at the end: 2 records" in text
    assert run_check(world / "long.json", "--model-max-length", 60) == 1
    text = capsys.readouterr().out
    assert "7 records, 5 of them right" in text
    assert "record 'late': no labelled token within the 60 tokens of model_max_length" in text
    assert text.endswith("model_max_length\n") and "2 problems:" in text


@pytest.mark.parametrize("name", ["bad.json", "worst.json"])
def test_every_problem_has_its_record(world, capsys, name):
    assert run_check(world / name) == 1
    text = capsys.readouterr().out
    lines = [line for line in text.splitlines() if f"{name}: record" in line]
    assert len(lines) == 4
    for line, words in zip(
        lines,
        (["'gone'", "gone.mp4"], ["'surplus'", "2 media"], ["'untagged'", "0 media"], ["'odd'", "alternate"]),
        strict=True,
    ):
        assert all(word in line for word in words), line


def test_paths_are_relative_to_the_folder_given(world, tmp_path, capsys):
    (tmp_path / "moved.json").write_text((world / "good.json").read_text())
    assert run_check(tmp_path / "moved.json") == 1
    assert run_check(tmp_path / "moved.json", "--data-folder", world) == 0


def test_a_file_that_cannot_be_read_is_a_problem_beside_the_others(world, tmp_path):
    (tmp_path / "text.json").write_text("[")
    report = check_files([tmp_path / "text.json", world / "good.json"])
    assert len(report.problems) == 1
    assert "line 1" in report.problems[0]
    assert sum(report.modalities.values()) == 5
    assert report.text().startswith("5 records, 5 of them right")


def test_a_model_that_is_not_there_is_told(world, capsys):
    assert cli.main(["data", "check", str(world / "good.json"), "--model-path", "no/such-model"]) == 2
    error = capsys.readouterr().err
    assert "--model-path no/such-model: neither a folder" in error and "Traceback" not in error


def test_histogram():
    lines = histogram([5, 5, 5, 104])
    assert len(lines) == 10
    assert lines[0].split()[:4] == ["5", "to", "14", "3"]
    assert lines[-1].split()[-1] == "#" * 13
    assert lines[4].split()[-1] == "0"
    assert histogram([7]) == ["        7 to       7         1 " + "#" * 40]


WRONG = {
    "c_videos_key_no_tag": "'videos_key_no_tag': the human turns hold 0 media tag(s), the record holds 1",
    "c_images_key_no_tag": "'images_key_no_tag': the human turns hold 0 media tag(s), the record holds 1",
    "c_audio_key": "m/a.wav: no such file or folder",
    "c_lfs": "m/lfs.mp4: is a Git LFS pointer, not the file itself: run git lfs pull",
    "c_html": "m/html.mp4: is an HTML page, not the file itself",
    "c_zeros": "m/zeros.mp4: begins with nothing but zeros",
    "c_no_moov": "m/no_moov.mp4: the file is truncated or damaged",
    "c_dir_nomedia": "cases/m: the folder holds videos, such as a.mp4: a video is named by its file",
    "c_audio_only": "m/audio.mp4: has no video stream, only audio",
    "c_empty_dir": "emptydir: the folder holds no images",
    "one_object": "one_object.json: is one JSON object over several lines; read is a JSON list of records",
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("how", ["open", "decode"])
def test_what_cannot_be_trained_on_is_named(name, how):
    report = check_files([CASES / f"{name}.json"], CASES, media=how)
    (problem,) = report.problems
    assert WRONG[name] in problem
    assert f"{name}.json" in problem and not report.modalities


@pytest.mark.parametrize("how", ["open", "decode"])
def test_an_animated_picture_is_a_video(how):
    report = check_files([CASES / "c_anim_webp.json"], CASES, media=how)
    assert not report.problems and not report.remarks and report.modalities == {"video": 1}


@pytest.mark.parametrize("name", ["c_system_key", "c_system_prompt_key"])
def test_a_system_text_is_used(name):
    """It stands in the prompt, in front of the question, and is not learned."""
    from videollama2.constants import IGNORE_INDEX
    from videollama2.data.dataset import VideoInstructionDataset
    from videollama2.data.records import read_records
    from videollama2.processing import VideoLlama2Processor

    file = CASES / f"{name}.json"
    assert not check_files([file], CASES).problems and not check_files([file], CASES).unread
    processor = VideoLlama2Processor.from_pretrained(golden_dir() / "models" / "qwen2-stc_connector-clip")
    sample = VideoInstructionDataset(read_records([file], CASES), processor, 4096)[0]
    pairs = list(zip(sample["input_ids"], sample["labels"], strict=True))
    hidden = processor.tokenizer.decode([token for token, label in pairs if label == IGNORE_INDEX])
    learned = processor.tokenizer.decode([token for token, label in pairs if label != IGNORE_INDEX])
    assert hidden.index("Answer in French.") < hidden.index("What?")
    assert "A cat." in learned and "French" not in learned


def test_one_bad_file_among_good_ones(capsys):
    assert run_check(CASES / "mix_lfs.json", "--data-folder", CASES) == 1
    text = capsys.readouterr().out
    assert "9 records, 8 of them right: 8 video" in text
    assert "record 'lfs': " in text and "Git LFS pointer" in text


def test_quick_opens_no_file():
    report = check_files([CASES / "c_audio_only.json"], CASES, media="quick")
    assert not report.problems and report.modalities["video"] == 1


def test_records_that_name_the_same_bad_file_share_a_line(tmp_path):
    (row,) = json.loads((CASES / "c_audio_only.json").read_text())
    (tmp_path / "many.json").write_text(json.dumps([{**row, "id": name} for name in "abc"]))
    report = check_files([tmp_path / "many.json"], CASES)
    (problem,) = report.problems
    assert "record 'a' (and 2 other records): " in problem and report.wrong == 3


def test_keys_that_nobody_reads_are_counted(world, tmp_path):
    rows = json.loads((world / "good.json").read_text())
    for row in rows:
        row["source"] = "somewhere"
    rows[0]["conversations"][0]["weight"] = 1
    (tmp_path / "keys.json").write_text(json.dumps(rows))
    report = check_files([tmp_path / "keys.json"], world)
    assert not report.problems
    assert report.unread == {"source": 5, "conversations.weight": 1}
    assert (
        "unknown keys, which are ignored, and how often they occur: 'source' (5), 'conversations.weight' (1)"
        in report.text()
    )


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gz"])
@pytest.mark.parametrize("form", ["list", "lines"])
def test_forms_and_encodings(world, tmp_path, form, encoding):
    rows = json.loads((world / "good.json").read_text())
    rows[0]["conversations"][0]["value"] += " Où ?"
    text = json.dumps(rows, ensure_ascii=False) if form == "list" else "\n".join(map(json.dumps, rows))
    content = gzip.compress(text.encode()) if encoding == "gz" else text.encode(encoding)
    (tmp_path / "data.json").write_bytes(content)
    assert check_files([tmp_path / "data.json"], world).text().startswith("5 records, 5 of them right")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ((CASES / "m" / "lfs.mp4").read_bytes(), ["is a Git LFS pointer"]),
        ((CASES / "m" / "html.mp4").read_bytes(), ["is an HTML page"]),
        ("[]".encode("utf-16")[2:], ["not JSON", "UTF-16"]),
        (b"PAR1\xff\xfe", ["is not an annotation file", "JSON list"]),
        (gzip.compress(b"[" * 1000)[:-20], ["cannot be read"]),
        (b"id,video\n1,a.mp4\n", ["not JSON at line 1", "JSON list of records, or JSON Lines"]),
    ],
    ids=["lfs", "page", "no mark", "parquet", "cut gz", "csv"],
)
def test_files_that_are_no_annotations(tmp_path, content, words):
    (tmp_path / "data.json").write_bytes(content)
    (problem,) = check_files([tmp_path / "data.json"]).problems
    assert all(word in problem for word in ["data.json", *words]), problem


def test_workers_are_about_decoding(world, capsys):
    assert cli.main(["data", "check", str(world / "good.json"), "--workers", "2"]) == 2
    assert "--workers is about --decode" in capsys.readouterr().err
