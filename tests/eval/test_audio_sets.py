"""The benchmarks of sounds and of videos with sound, against the reference values of the published code."""

import csv
import json
import re
import shutil
import zipfile
from pathlib import Path

import pytest

from tests.conftest import golden_audio_dir
from tests.eval.helpers.reference import AUDIO_SETS, expected_of_sounds
from videollama2.errors import DataError
from videollama2.eval.__main__ import main
from videollama2.eval.benchmarks import benchmark
from videollama2.eval.benchmarks.short_answers import strict_short_answer
from videollama2.eval.items import PUBLISHED, STRICT
from videollama2.eval.report.paper_numbers import paper_number
from videollama2.media.audio import NO_TRACK

pytestmark = pytest.mark.usefixtures("without_charts")

GOLDEN = golden_audio_dir()
FOLDERS = {
    "vocalsound": "vocal",
    "TUT2017": "TUT2017",
    "clothoAQA": "ClothoAQA",
    "AVQA": "AVQA_music",
    "AVSD": "AVSD",
    "AVSSD": "VGGSound_final",
}
MODEL = GOLDEN / "models" / "qwen2-stc_connector_v35-siglip-beats"


@pytest.mark.parametrize("name", FOLDERS)
def test_questions_are_those_of_the_published_runner(name):
    found = benchmark(name)
    items = found.load(AUDIO_SETS / FOLDERS[name])
    rows = [row for row in expected_of_sounds("instructions.json") if row["benchmark"] == name]
    assert rows and found.folder == FOLDERS[name]
    for item, row in zip(items, rows, strict=True):
        assert item.instruction == row["instruct"]
        assert (item.options[item.answer] if item.options else item.answer) == row["answer"]
        path = AUDIO_SETS / FOLDERS[name] / item.media
        if row["unreadable_media"]:
            assert not path.exists() and path.name == row["id"]
            continue
        assert path.samefile(AUDIO_SETS / row["path"])
        assert (item.kind, item.use_audio) == (row["modal"], bool(row["processor_kwargs"].get("va")))


@pytest.mark.parametrize("name", ["TUT2017", "vocalsound", "clothoAQA", "AVQA"])
def test_single_answers_are_right_or_wrong_as_published(name):
    found = benchmark(name)
    rows = [row for row in expected_of_sounds("answer_scoring.json") if row["benchmark"] == name]
    wrong = []
    for row in rows:
        reading = found.read(entry_item(found, row["answer"]), row["pred"], PUBLISHED)
        if reading.correct is not row["correct"]:
            wrong.append(row)
        printed = re.match(r"Binary Accuracy: ([\d.]+)%", row.get("binary_printed") or "")
        if printed and reading.value != float(printed[1]) / 100:
            wrong.append(row)
    assert len(rows) >= 40 and not wrong


def entry_item(found, answer):
    from videollama2.eval.annotations import AnnotationEntry

    return found.item_of("0", "", AnnotationEntry({"question": "q"}, "file: entry 0"), answer)


@pytest.mark.parametrize(
    "row", [row for row in expected_of_sounds("scores.json").items() if row[1].get("file")], ids=lambda r: r[0]
)
def test_published_files_have_the_published_scores(row, tmp_path, capsys):
    name, case = row
    path = AUDIO_SETS / "expected" / case["file"]
    assert main(["score", str(path), "--benchmark", name.split()[0], "--output", str(tmp_path), "--no-progress"]) == 0
    report = json.loads((tmp_path / "results.json").read_text())
    found = {metric["name"]: metric for metric in report["metrics"] if metric["protocol"] == PUBLISHED}
    for line in case["printed"]:
        kind, value, count = re.fullmatch(
            r"(\w+) Accuracy: ([\d.]+)% Total (?:Binary )?Responses: (\d+)", line
        ).groups()
        metric = found["binary accuracy" if kind == "Binary" else "accuracy"]
        assert f"{metric['overall']['value']:.2f}" == value and metric["overall"]["n"] == int(count)
    assert any(metric["protocol"] == STRICT for metric in report["metrics"])
    capsys.readouterr()


def score_line(folder, line, name="TUT2017"):
    """Score a file of one line; returns the exit code, and the measures by their protocols if there are any."""
    path, out = folder / "merge.json", folder / "out"
    path.write_text(line)
    code = main(["score", str(path), "--benchmark", name, "--output", str(out), "--no-progress"])
    metrics = json.loads((out / "results.json").read_text())["metrics"] if code == 0 else []
    return code, {metric["protocol"]: metric for metric in metrics}


def line_of(**fields):
    return json.dumps({"id": "a.wav", "question": "Which sound?", "answer": "bus", "pred": "bus", **fields}) + "\n"


def test_every_row_without_a_file_is_decided_below():
    rows = expected_of_sounds("scores.json")
    assert {name for name, row in rows.items() if "file" not in row} == {
        "empty file",
        "emoji and quotes",
        "null in a line",
    }
    assert rows["empty file"]["published_error"] and rows["null in a line"]["published_error"]


@pytest.mark.parametrize("name", ["TUT2017", "vocalsound", "clothoAQA", "AVQA"])
@pytest.mark.parametrize("text", ["", "\n\n"])
def test_a_file_without_answers_is_refused(name, text, tmp_path, capsys):
    assert score_line(tmp_path, text, name)[0] == 2
    assert "merge.json: there is no answer in this file" in capsys.readouterr().err


def test_emoji_and_quotes_are_read(tmp_path, capsys):
    (printed,) = expected_of_sounds("scores.json")["emoji and quotes"]["printed"]
    for pred, value in (('"tram", it\'s a 🚋', 0.0), ('"bus", it\'s a 🚌', 100.0)):
        _, metrics = score_line(tmp_path, line_of(pred=pred))
        whole = metrics[PUBLISHED]["overall"]
        assert (whole["value"], whole["n"]) == (value, 1)
        if not value:
            assert printed == f"Overall Accuracy: {whole['value']:.2f}% Total Responses: {whole['n']}"
    capsys.readouterr()


def test_null_as_what_the_model_said_is_an_answer_without_words(tmp_path, capsys):
    code, metrics = score_line(tmp_path, line_of(pred=None))
    assert code == 0 and set(metrics) == {PUBLISHED, STRICT}
    for metric in metrics.values():
        assert metric["overall"]["value"] == 0.0
        assert (metric["counts"]["answered"], metric["counts"]["unparsed"]) == (1, 1)
    capsys.readouterr()


def test_null_in_a_field_that_nobody_reads_does_not_matter(tmp_path, capsys):
    _, metrics = score_line(tmp_path, line_of(question=None, more=None))
    assert metrics[PUBLISHED]["overall"]["value"] == 100.0
    capsys.readouterr()


def test_null_in_place_of_the_right_answer_is_refused(tmp_path, capsys):
    assert score_line(tmp_path, line_of(answer=None))[0] == 2
    assert "merge.json: entry 0, field 'answer': expected a text, got None" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("output", "answer"),
    [
        ("Yes.", "yes"),
        ("yes, a dog barks in the distance", "yes"),
        ("No, yes", None),
        ("No way to tell whether it rains", None),
        ("The answer is: **Two**.", "2"),
        ("two", "2"),
        (" Cello .", "cello"),
        ("<think>yes or no?</think> no", "no"),
        ("There are two cellos and one violin", None),
        ("", None),
        ("left side", "left side"),
    ],
)
def test_the_strict_reading_of_short_answers(output, answer):
    assert strict_short_answer(output) == answer


def run(name, data, output, *more):
    options = ("--model-path", str(MODEL), "--device", "cpu", "--max-new-tokens", "3", "--no-progress")
    return main(["run", name, "--data", str(data), "--output", str(output), *options, *more])


@pytest.mark.slow
def test_sounds_are_heard_from_files_to_a_report(tmp_path, capsys):
    assert run("vocalsound", AUDIO_SETS / "vocal", tmp_path, "--limit", "2") == 0
    report = json.loads((tmp_path / "results.json").read_text())
    assert report["metrics"][0]["counts"]["answered"] == 2 and report["metrics"][0]["counts"]["silent"] == 0
    assert main(["show", str(tmp_path)]) == 0
    assert "vocalsound" in (tmp_path / "show.html").read_text()
    assert json.loads((tmp_path / "samples.jsonl").read_text().splitlines()[0])["output"]
    capsys.readouterr()


@pytest.mark.slow
def test_videos_without_sound_are_counted_and_a_sound_changes_the_answer_key(tmp_path, capsys):
    folder = tmp_path / "AVSD"
    shutil.copytree(AUDIO_SETS / "AVSD", folder)
    assert main(["check", "avsd", "--data", str(folder)]) == 0
    found = re.search(r"sound tracks for (\d) of (\d) videos", capsys.readouterr().out)
    with_track, of = map(int, found.groups())
    assert 0 < with_track < of
    assert run("avsd", folder, tmp_path / "out", "--judge-model", "local") == 0
    said = capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    counts = report["metrics"][0]["counts"]
    assert (counts["answered"], counts["silent"]) == (of, of - with_track)
    assert "| silent |" in re.sub(" +", " ", (tmp_path / "out" / "results.md").read_text())
    notes = [json.loads(line).get("note") for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert notes.count(NO_TRACK) == of - with_track and "| accuracy" in said
    assert (
        run("avsd", folder, tmp_path / "out", "--judge-model", "local") == 0
    )  # goes on where it stopped: nothing left


def test_a_broken_track_is_an_unreadable_medium_and_no_silence(tmp_path, capsys):
    rows = [{"audio": "a.wav", "gt": "bus"}, {"audio": "gone.wav", "gt": "tram"}]
    (tmp_path / "tut2017_eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "a.wav").write_text("this is no sound")
    assert run("tut2017", tmp_path, tmp_path / "out") == 1
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    assert report["metrics"][0]["counts"]["missing_media"] == 2
    assert "2 with missing or unreadable media" in capsys.readouterr().err


def test_the_official_music_avqa_and_what_prepare_makes_of_a_download(tmp_path, capsys):
    rows = [
        {
            "video_id": "00000001",
            "question_id": 5,
            "type": '["Audio-Visual", "Location"]',
            "question_content": "Where is the <LL> <Object>?",
            "templ_values": '["first", "cello"]',
            "anser": "left",
        }
    ]
    hub = tmp_path / "hub"
    hub.mkdir()
    (hub / "avqa-test.json").write_text(json.dumps(rows))
    with zipfile.ZipFile(hub / "MUSIC-AVQA-videos-Real.zip", "w") as archive:
        archive.write(AUDIO_SETS / "AVSD" / "Charades_v1_480" / "V00441606.mp4", "x/00000001.mp4")
    assert main(["prepare", "music_avqa", "--from", str(hub), "--to", str(tmp_path / "data")]) == 0
    (item,) = benchmark("MUSIC-AVQA").load(tmp_path / "data")
    assert item.instruction == "Where is the first cello?" and item.answer == "left" and item.use_audio
    assert item.category == "Audio-Visual Location" and (tmp_path / "data" / item.media).is_file()
    (hub / "avqa-test.json").write_text(json.dumps([{**rows[0], "templ_values": "[]"}]))
    with pytest.raises(DataError, match=r"avqa-test.json: index 0, field 'templ_values': expected a word for each gap"):
        benchmark("music_avqa").load(hub)
    capsys.readouterr()


def test_captions_of_clotho(tmp_path, capsys):
    hub = tmp_path / "hub"
    (hub / "clotho_audio_evaluation").mkdir(parents=True)
    shutil.copy(AUDIO_SETS / "vocal" / "audio_16k" / "f1262_0_0.wav", hub / "clotho_audio_evaluation" / "a b, c.wav")
    with (hub / "clotho_captions_evaluation.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file_name", *(f"caption_{number}" for number in range(1, 6))])
        table.writerow(["a b, c.wav", *"vwxyz"])
    assert main(["prepare", "clotho", "--from", str(hub), "--to", str(tmp_path / "data")]) == 0
    assert "sounds      1 of 1" in capsys.readouterr().out
    (item,) = benchmark("clotho").load(tmp_path / "data")
    assert item.instruction == "Describe the audio." and item.answer == list("vwxyz")
    assert (tmp_path / "data" / item.media).is_file() and Path(item.media).parts == ("evaluation", "a b, c.wav")


def test_a_stored_crop_is_heard(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"")
    rows = [
        {"audio": "/elsewhere/a.wav", "gt": "cafe/restaurant", "crop_start": 27670},
        {"audio": "a.wav", "gt": "bus"},
    ]
    (tmp_path / "tut2017_eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = benchmark("tut2017").load(tmp_path)
    assert (first.crop_start, second.crop_start) == (27670, None) and first.clip != second.clip
    assert first.media == second.media == "a.wav" and first.options[first.answer] == "cafe or restaurant"


def test_a_class_that_does_not_exist_is_named(tmp_path):
    (tmp_path / "vocalsound_eval.jsonl").write_text('{"audio": "a.wav", "gt": "Hiccup"}\n')
    with pytest.raises(DataError, match=r"vocalsound_eval.jsonl: index 0: the class must be one of Laughter.*'Hiccup'"):
        benchmark("vocalsound").load(tmp_path)


@pytest.mark.parametrize(
    ("model", "name", "value"),
    [
        ("DAMO-NLP-SG/VideoLLaMA2.1-7B-AV", "clothoAQA", 71.02),
        ("VideoLLaMA2.1-7B-AV", "AVQA", 80.9),
        ("VideoLLaMA2-7B-AV", "AVSSD", 70.9),
        ("VideoLLaMA2-7B-AV", "vocalsound", 93.19),
        ("VideoLLaMA2-7B", "vocalsound", None),
    ],
)
def test_numbers_of_the_paper(model, name, value):
    found = paper_number(model, name, "accuracy")
    assert (found and found.value) == value
