"""Prompts, clips, answers and reports equal those of the published runners on the same annotation files."""

import json
import re
import shutil

import pytest

from tests.conftest import ROOT
from tests.eval.helpers.reference import benchmarks_dir, expected
from videollama2.errors import ConfigError, DataError
from videollama2.eval.benchmarks import BENCHMARKS, benchmark, names
from videollama2.eval.report.videomme_official import official_report

FOLDERS = {
    "mvbench": "mvbench",
    "egoschema": "egoschema",
    "perception_test_mcqa": "perception_test",
    "videomme": "videomme",
    "Activitynet_Zero_Shot_QA": "activitynet_qa",
    "MSVD_Zero_Shot_QA": "msvd_qa",
    "videochatgpt_generic": "videochatgpt",
    "videochatgpt_temporal": "videochatgpt",
    "videochatgpt_consistency": "videochatgpt",
    "msvc": "msvc",
}


def load(name, **options):
    found = benchmark(name).configure(**options)
    data = benchmarks_dir() / found.folder
    return found, data, found.load(data)


def reference(kind):
    return [row for row in expected("instructions.json") if row["benchmark"] == kind]


def items_of(kind):
    found, _, items = load(FOLDERS[kind])
    if kind.startswith("videochatgpt"):
        items = [item for item in items if item.category == kind.removeprefix("videochatgpt_")]
    return found, items


@pytest.mark.parametrize("kind", FOLDERS)
def test_prompts_clips_and_answers_are_the_published_ones(kind):
    found, items = items_of(kind)
    rows = reference(kind)
    assert len(items) == len(rows) > 0
    for item, row in zip(items, rows, strict=True):
        instruct = row["instruct"]
        assert item.instructions == (tuple(instruct) if isinstance(instruct, list) else (instruct,))
        video = row["video"]
        assert (f"{found.folder}/{item.media}", item.start, item.end) == (video["path"], video["start"], video["end"])
        assert (benchmarks_dir() / found.folder / item.media).exists()
        if "id" in row:
            wanted = "-".join(map(str, row["id"])) if isinstance(row["id"], list) else row["id"]
            assert item.id == wanted
        if "answer_idx" in row:
            shown = (item.answer, list(item.options), item.category)
            assert shown == (row["answer_idx"], row["options"], row["task"])
        if "answer" in row:
            assert item.answer == row["answer"]


def test_every_reference_row_is_tested():
    assert {row["benchmark"] for row in expected("instructions.json")} == set(FOLDERS)


def test_subtitles_are_chosen_as_published():
    pytest.importorskip("pyarrow")
    found, data, items = load("videomme", subtitles="published")
    rows = reference("videomme")
    for item, row in zip(items, rows, strict=True):
        assert found.instructions(item, data, row["num_frames"]) == (row["instruct_with_subtitles"],)
        assert load("videomme")[0].instructions(item, data, 8) == (row["instruct"],)


def test_seen_subtitles_come_once_and_leave_no_head_without_text():
    pytest.importorskip("pyarrow")
    found, data, items = load("videomme", subtitles="seen")
    texts = {item.group: found.instructions(item, data, 8)[0] for item in items}
    head = "This video's subtitles are listed below:\n"
    assert texts["791yxDc0A54"].startswith(
        f"{head}Blue right red right down.\nPerson triangle first.\nDoor large down.\nNever blue moving large.\n"
        "Twice ball person.\nSelect the best"
    )
    assert texts["wblz496auD0"].startswith("Select the best")


@pytest.mark.parametrize("row", expected("answer_parsing.json"), ids=lambda row: row["benchmark"])
def test_answers_are_read_as_published(row):
    from videollama2.eval.reading.answers import LETTERS, published_egoschema, published_mvbench, published_videomme

    options = row.get("options", ())
    if row["benchmark"] == "videomme":
        choices = [f"{letter}. {option}." for letter, option in zip(LETTERS, options, strict=False)]
        assert LETTERS[published_videomme(row["output"], choices).value] == row["pred"]
    elif row["benchmark"] == "mvbench":
        assert published_mvbench(row["output"], options).value == row["pred"]
    else:
        assert published_egoschema(row["output"]).value == row["pred"]


def test_official_videomme_report_is_byte_for_byte():
    assert official_report(expected("videomme_responses.json")) == expected("videomme_report.txt")


def test_official_videomme_report_names_what_is_missing():
    with pytest.raises(DataError, match=r"index 1, field 'domain'"):
        broken = {"duration": "short", "missing": False, "questions": []}
        official_report([*expected("videomme_responses.json")[:1], broken])


def test_public_egoschema_answers_are_scored_and_the_others_not():
    _, _, items = load("egoschema")
    assert [item.answer for item in items] == [0, 1, None, None]


def test_perception_test_without_answers_has_none(tmp_path):
    source = json.loads((benchmarks_dir() / "perception_test_mcqa" / "mc_question_test.json").read_text())
    for entry in source.values():
        for question in entry["mc_question"]:
            del question["answer_id"]
    (tmp_path / "mc_question_test.json").write_text(json.dumps(source))
    items = benchmark("perception_test").load(tmp_path)
    assert [item.answer for item in items] == [None] * 6


def test_perception_test_files_are_chosen_and_hold_each_question_once(tmp_path):
    source = json.loads((benchmarks_dir() / "perception_test_mcqa" / "mc_question_test.json").read_text())
    (tmp_path / "mc_question_test.json").write_text(json.dumps(source))
    first, *_ = source
    (tmp_path / "mc_question_valid.json").write_text(json.dumps({first: source[first]}))
    splits = [benchmark("perception_test").configure(split=name) for name in (None, "test", "valid")]
    counts = [len(split.load(tmp_path)) for split in splits]
    assert counts == [6, 6, len(source[first]["mc_question"])]
    twice = {**source, "copy": source[first]}
    (tmp_path / "mc_question_test.json").write_text(json.dumps(twice))
    with pytest.raises(DataError, match=r"mc_question_test\.json: index 6 has the id .* of index 0"):
        benchmark("perception_test").load(tmp_path)
    with pytest.raises(ConfigError, match="split must be one of test, valid"):
        benchmark("perception_test").configure(split="train")


def test_questions_and_answers_are_joined_by_id_not_by_place(tmp_path):
    folder = benchmarks_dir() / "MSVD_Zero_Shot_QA"
    shutil.copy(folder / "test_q.json", tmp_path)
    answers = json.loads((folder / "test_a.json").read_text())
    (tmp_path / "test_a.json").write_text(json.dumps(answers[::-1]))
    wanted = [row["answer"] for row in reference("MSVD_Zero_Shot_QA")]
    assert [item.answer for item in benchmark("msvd_qa").load(tmp_path)] == wanted


def change(name, file, edit, tmp_path):
    found = benchmark(name)
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    for other in (benchmarks_dir() / found.folder).glob("**/*.json"):
        target = tmp_path / other.relative_to(benchmarks_dir() / found.folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(other, target)
    content = json.loads(path.read_text())
    path.write_text(json.dumps(edit(content)))
    return found


def without(field, index):
    def edit(content):
        del content[index][field]
        return content

    return edit


def with_value(field, index, value):
    def edit(content):
        content[index][field] = value
        return content

    return edit


BROKEN = [
    ("mvbench", "json/action_count.json", without("question", 1), r"action_count.json: index 1, field 'question'"),
    ("mvbench", "json/action_count.json", with_value("answer", 0, "x"), r"index 0, field 'answer': 'x' is none"),
    ("mvbench", "json/action_sequence.json", with_value("start", 1, "x"), r"index 1, field 'start': expected sec"),
    ("mvbench", "json/action_count.json", with_value("candidates", 0, "ab"), r"index 0, field 'candidates'"),
    ("mvbench", "json/action_count.json", with_value("video", 0, "../../secret"), r"inside the data folder"),
    ("egoschema", "questions.json", without("option 3", 2), r"questions\.json: index 2, field 'option 3': is missing"),
    ("egoschema", "questions.json", lambda rows: [*rows, rows[0]], r"index 4 has the id .* of index 0"),
    ("egoschema", "subset_answers.json", lambda rows: {**rows, "nobody": 1}, r"'nobody' is not a question"),
    ("egoschema", "subset_answers.json", lambda rows: dict.fromkeys(rows, 7), r"field '.*': expected a whole number"),
    ("msvc", "msvc.json", with_value("captions", 1, []), r"msvc\.json: index 1, field 'captions'"),
    ("msvd_qa", "test_a.json", lambda rows: rows[1:], r"test_q\.json: index 0, field 'question_id': .* has no answer"),
    ("msvd_qa", "test_q.json", lambda rows: rows[1:], r"test_a\.json: index 0, field 'question_id': has no question"),
    ("msvd_qa", "test_q.json", lambda rows: {}, r"test_q\.json: expected a list, got dict"),
    ("videochatgpt", "temporal_qa.json", without("Q", 0), r"temporal_qa\.json: index 0, field 'Q': is missing"),
    ("videochatgpt", "consistency_qa.json", without("Q2", 2), r"consistency_qa\.json: index 2, field 'Q2'"),
    ("msvc", "msvc.json", lambda rows: [], r"msvc\.json: there is no record"),
]


@pytest.mark.parametrize(("name", "file", "edit", "message"), BROKEN)
def test_a_broken_annotation_names_file_index_and_field(name, file, edit, message, tmp_path):
    with pytest.raises(DataError, match=message):
        change(name, file, edit, tmp_path).load(tmp_path)


def test_a_broken_perception_test_file_is_named(tmp_path):
    def edit(content):
        content["video_4796"]["mc_question"][2]["options"] = ["a", "b"]
        return content

    found = change("perception_test", "mc_question_test.json", edit, tmp_path)
    where = r"index 'video_4796', mc_question\[2\], field 'options'"
    with pytest.raises(DataError, match=f"{where}: expected 3 texts, got 2"):
        found.load(tmp_path)


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"msvc\.json: is missing"):
        benchmark("msvc").load(tmp_path)
    (tmp_path / "msvc.json").write_text("[1,")
    with pytest.raises(DataError, match=r"msvc\.json: not JSON at line 1, column"):
        benchmark("msvc").load(tmp_path)


def test_reversed_bounds_are_exchanged_as_published(tmp_path):
    found = change("mvbench", "json/action_sequence.json", with_value("start", 0, 2.0), tmp_path)
    item = found.load(tmp_path)[0]
    assert (item.start, item.end) == (1.31, 2.0)


def test_names_and_spellings():
    assert names()[: len(BENCHMARKS)] == list(BENCHMARKS)
    for spelling in ("MSVD_Zero_Shot_QA", "msvd-qa", "msvd_qa"):
        assert benchmark(spelling).name == "msvd_qa"
    for name in BENCHMARKS:
        found = benchmark(name)
        assert found.name == name
        assert found.layout and found.source and found.title
    with pytest.raises(ConfigError, match="there is no benchmark 'imagenet'; there are egoschema"):
        benchmark("imagenet")
    with pytest.raises(ConfigError, match="msvd_qa has no option subtitles"):
        benchmark("msvd_qa").configure(subtitles="published")


def test_a_benchmark_of_another_package_is_found(tmp_path, monkeypatch):
    """A real installed distribution on the path, as pip would leave it."""
    (tmp_path / "third_party.py").write_text(
        "from videollama2.eval.benchmarks.msvc import MSVC\n\n\nclass Mine(MSVC):\n    name = 'mine'\n"
    )
    info = tmp_path / "third_party-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[videollama2.benchmarks]\nmine = third_party:Mine\nwrong = third_party:__name__\nabsent = nowhere:X\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "mine" in names()
    assert benchmark("mine").name == "mine"
    with pytest.raises(ConfigError, match="'wrong': third_party:__name__ is a str"):
        benchmark("wrong")
    with pytest.raises(ConfigError, match="'absent' of nowhere:X cannot be imported"):
        benchmark("absent")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_has_a_readme_and_a_script(name):
    found = benchmark(name)
    text = (ROOT / "eval" / found.folder / "README.md").read_text()
    assert found.layout in text
    assert found.source in text
    scripts = [path for path in re.findall(r"scripts/eval/\w+\.sh", text) if path != "scripts/eval/run.sh"]
    assert scripts
    for path in set(scripts):
        assert f" {name} " in (ROOT / path).read_text()
    assert f"]({found.folder}/README.md)" in (ROOT / "eval" / "README.md").read_text()
    for block in re.findall(r"```json\n(.*?)```", text, re.S):
        decoder, rest = json.JSONDecoder(), block.strip()
        while rest:
            _, end = decoder.raw_decode(rest)
            rest = rest[end:].strip()
