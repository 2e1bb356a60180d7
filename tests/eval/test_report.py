"""The report: numbers by hand, the paper beside them, the same bytes twice, and a chart that is one."""

import io
import json
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
from PIL import Image

from tests.eval.helpers.reference import unpadded
from tests.eval.helpers.samples import HEADER, ROWS, row
from videollama2 import __version__
from videollama2.eval.judging.judge import LocalJudge
from videollama2.eval.judging.rubrics import rubric
from videollama2.eval.report.document import SCHEMA_VERSION, build_report
from videollama2.eval.report.metrics import Cell, count_outcomes, summarise, summarise_judged
from videollama2.eval.report.paper_numbers import canonical_benchmark, paper_number
from videollama2.eval.report.statistics import wilson
from videollama2.eval.report.tables import build_markdown, write_report
from videollama2.eval.samples import Reading, Verdict


def judged_rows():
    rows = []
    for index, (pred, score) in enumerate([("yes", 4.8), ("no", 1.0), ("yes", 5.0), (None, None)]):
        error = None if pred else "HTTP 429 after 6 attempts: slow down"
        rows.append(row(index, None, group=f"v{index // 2}", judge=Verdict(pred, score, None, error)))
    return rows


def judged(rows, text, protocol, name="score"):
    return summarise_judged(rows, [each.judge for each in rows], text.wants_pred, protocol, name)


def report(header=HEADER, rows=(), metrics=()):
    return build_report(header, rows, metrics)


def test_accuracy_counts_and_lower_bound():
    found = summarise(ROWS, "published")
    overall = found.overall
    assert (overall.n, overall.groups) == (6, 6)
    assert overall.value == pytest.approx(100 * 4 / 6)
    assert overall.lower_bound == pytest.approx(100 * 4 / 8)
    assert (overall.low, overall.high) == pytest.approx([100 * end for end in wilson(4, 6)])
    assert asdict(found.counts) == {
        "total": 8,
        "answered": 6,
        "unparsed": 2,
        "guessed": 1,
        "missing_media": 1,
        "failed": 1,
        "judge_failed": 0,
        "silent": 0,
    }
    assert list(found.categories) == ["Action Count", "Moving | Direction"]
    assert found.categories["Action Count"].value == 50
    assert found.categories["Moving | Direction"].lower_bound == 60
    assert found.macro == (50 + 75) / 2


def test_each_protocol_reads_for_itself():
    """The published one guesses, the strict one does not; both stand in the same row."""
    readings = {"published": Reading(2, True, True), "strict": Reading(None, False, False)}
    rows = [row(0, True, guessed=True, parsed=2, protocols=readings)]
    found = {name: summarise(rows, name) for name in ("published", "strict")}
    assert (found["published"].overall.value, found["strict"].overall.value) == (100, 0)
    assert [found[name].counts.guessed for name in found] == [1, 0]
    assert [found[name].counts.unparsed for name in found] == [1, 1]


def test_questions_of_one_video_widen_the_interval():
    rows = [row(n, n % 6 < 3, group=f"v{n // 3}") for n in range(30)]
    apart = summarise([replace(each, group=each.id) for each in rows], "strict").overall
    together = summarise(rows, "strict").overall
    assert together.value == apart.value
    assert together.groups == 10
    assert together.high - together.low > 1.3 * (apart.high - apart.low)


def test_without_references_nothing_is_scored():
    """A test split: answers for a submission, no number."""
    found = summarise([row(n, None, answer=None) for n in range(3)], "published")
    assert found.overall == Cell(0, 0, None, None, None, None)
    assert found.counts.answered == 3
    assert found.macro is None


def test_judged_accuracy_and_score_with_failures_left_out():
    accuracy, score = judged(judged_rows(), rubric("qa", "own"), "strict")
    assert (accuracy.name, accuracy.unit, score.name, score.unit) == ("accuracy", "%", "score", "0-5")
    assert accuracy.overall.value == pytest.approx(200 / 3)
    assert accuracy.overall.lower_bound == 50
    assert score.overall.value == pytest.approx((4.8 + 1 + 5) / 3)
    assert score.overall.lower_bound == pytest.approx((4.8 + 1 + 5) / 4)
    assert 0 <= score.overall.low < score.overall.high <= 5
    assert score.counts.judge_failed == 1
    assert score.counts.answered == 4


def test_published_scores_are_cut_to_whole_numbers():
    _, score = judged(judged_rows(), rubric("qa", "own"), "published")
    assert score.overall.value == pytest.approx((4 + 1 + 5) / 3)


def test_a_score_alone_has_no_accuracy():
    (only,) = judged(judged_rows(), rubric("msvc_correctness", "own"), "strict", "correctness")
    assert (only.name, only.unit) == ("correctness", "0-5")


def test_an_unanswered_question_is_failed_not_judge_failed():
    rows = [row(0, None, error="x", error_kind="failed"), *judged_rows()]
    counts = count_outcomes(rows, "strict", [each.judge for each in rows])
    assert (counts.failed, counts.judge_failed, counts.total) == (1, 1, 5)


def test_breakdowns():
    breakdowns = {"parity": lambda each: "even" if int(each.id[1]) % 2 == 0 else "odd"}
    found = summarise(ROWS, "published", breakdowns=breakdowns)
    assert found.breakdowns["parity"]["even"].n == 3
    assert "## By parity" in build_markdown(report(HEADER, ROWS, [found]))


@pytest.mark.parametrize(
    ("model", "benchmark", "metric", "value"),
    [
        ("DAMO-NLP-SG/VideoLLaMA2-7B", "mvbench", "accuracy", 53.4),
        ("/data/VideoLLaMA2.1-7B-16F/", "egoschema", "accuracy", 53.1),
        ("VideoLLaMA2-72B", "perception_test_mcqa", "accuracy", 57.5),
        ("VideoLLaMA2-8x7B", "MSVD_Zero_Shot_QA", "score", 3.8),
        ("VideoLLaMA2-7B-16F", "Activitynet_Zero_Shot_QA", "accuracy", 50.2),
        ("VideoLLaMA2-7B", "videochatgpt_gen", "consistency", 3.25),
        ("VideoLLaMA2.1-7B-16F", "msvc", "detailedness", 2.81),
    ],
)
def test_paper_numbers(model, benchmark, metric, value):
    assert paper_number(model, benchmark, metric).value == value


def test_no_number_is_invented():
    assert paper_number("videollama2-tiny", "mvbench", "accuracy") is None
    assert paper_number("me/VideoLLaMA2-7B-finetuned", "mvbench", "accuracy") is None
    assert paper_number("VideoLLaMA2-7B-Base", "mvbench", "accuracy") is None
    assert paper_number("VideoLLaMA2-7B", "mvbench", "score") is None
    assert paper_number("VideoLLaMA2-7B", "moving_shapes", "accuracy") is None


def test_subtitles_have_their_own_number():
    assert paper_number("VideoLLaMA2-7B", "videomme", "accuracy").value == 45.1
    assert paper_number("VideoLLaMA2-7B", "videomme", "accuracy", subtitles=True).value == 46.6
    assert paper_number("VideoLLaMA2-7B", "mvbench", "accuracy", subtitles=True).value == 53.4
    assert canonical_benchmark("msvd-qa") == canonical_benchmark("MSVD_QA") == "msvd_qa"


def test_results_json_says_everything(tmp_path):
    header = replace(HEADER, configuration_hash="77", settings={"split": "valid"})
    metrics = [summarise(ROWS, "published"), summarise(ROWS, "strict")]
    paths = write_report(tmp_path / "new" / "folder", build_report(header, ROWS, metrics, ["a.json"]))
    document = json.loads(paths["json"].read_text(encoding="utf-8"))
    assert document["schema_version"] == SCHEMA_VERSION
    assert document["project_version"] == __version__
    told = ("benchmark", "model", "revision", "dtype", "frames", "generation", "protocol", "judge")
    assert {key: document[key] for key in told} == {key: getattr(HEADER, key) for key in told}
    assert (document["configuration_hash"], document["split"], document["submissions"]) == ("77", "valid", ["a.json"])
    published, strict = document["metrics"]
    failed = ["1 missing or unreadable media of 8", "1 failed answers of 8", "split valid"]
    assert published["paper"] == {"value": 53.4, "source": "arXiv 2406.07476, table 5", "differs": failed}
    assert strict["paper"]["differs"] == ["protocol strict instead of published", *failed]
    assert [problem["id"] for problem in document["problems"]] == ["q6", "q7"]
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == [
        "results.json",
        "results.md",
        "results.png",
    ]


def test_same_rows_same_bytes(tmp_path):
    made = report(HEADER, ROWS, [summarise(ROWS, "published")])
    first, second = write_report(tmp_path / "a", made), write_report(tmp_path / "b", made)
    for kind, path in first.items():
        assert path.read_bytes() == second[kind].read_bytes(), kind


def test_markdown_shows_the_numbers():
    text = build_markdown(report(HEADER, ROWS, [summarise(ROWS, "published")]))
    assert len({len(line) for line in text.splitlines() if line.startswith("| accuracy") and "%" in line}) == 1
    lines = unpadded(text).splitlines()
    assert "| accuracy | published | % | 6 | 66.7 | 30.0..90.3 | 50.0 | 62.5 [25.0..100.0] | 53.4 |" in lines
    assert "| accuracy | published | 8 | 6 | 2 | 1 | 1 | 1 | 0 |" in lines
    assert any(line.startswith("| Moving \\| Direction | 4 | 75.0 [") for line in lines)
    assert "- `q6`: videos/v6.mp4: not found" in lines
    for line in lines:  # every row of a table has as many cells as its head
        if line.startswith("|"):
            assert line.replace("\\|", "").count("|") in (3, 4, 10), line


def test_settings_that_change_the_questions_are_named_and_one_category_is_not_repeated():
    rows = [row(n, n > 1) for n in range(4)]
    header = replace(HEADER, benchmark="videomme", settings={"subtitles": "published"})
    text = build_markdown(report(header, rows, [summarise(rows, "published")]))
    assert "- subtitles: published\n" in text and "quantization" not in text
    assert "## By category" not in text
    assert "46.6" in unpadded(text)


def test_a_judge_that_is_not_the_papers_is_pointed_out():
    text = rubric("qa", "own")
    rows = [row(n, None, answer="A") for n in range(4)]
    verdicts = LocalJudge().verdicts(rows, text)
    judge = LocalJudge().describe() | {"rubric": text.describe()}
    header = replace(HEADER, benchmark="msvd_qa", judge=judge, frames=16)
    made = report(header, rows, summarise_judged(rows, verdicts, text.wants_pred, "published"))
    accuracy = made.metrics[0]
    assert accuracy.paper.value == 71.7
    assert accuracy.paper.differs == [
        "the paper's judge is GPT-3.5",
        "16 frames instead of 8",
        "rubric own-1 instead of published",
        "judged by matching texts, not by a language model",
    ]
    text = build_markdown(made)
    assert "- judge: local, model exact or normalised match, rubric own-1\n" in text
    assert "judged by matching texts" in text


def test_many_problems_are_counted_and_the_first_named():
    rows = [row(n, None, error="missing media: `x|\ny`") for n in range(25)]
    text = build_markdown(report(HEADER, rows, [summarise(rows, "published")]))
    assert "## Problems (25)" in text and "- and 5 more" in text
    assert "- `q0`: missing media: 'x\\| y'" in text


@pytest.mark.parametrize("metrics", [[], [summarise(ROWS[-2:], "published")]])
def test_a_report_without_a_number_is_still_a_report(tmp_path, metrics):
    paths = write_report(tmp_path, report(HEADER, ROWS[-2:], metrics))
    assert Image.open(paths["chart"]).format == "PNG"


def chart(tmp_path, header, metrics):
    paths = write_report(tmp_path, report(header, [], metrics))
    image = Image.open(io.BytesIO(paths["chart"].read_bytes()))
    image.load()
    return image


@pytest.mark.slow
def test_chart_grows_with_the_categories(tmp_path):
    few = chart(tmp_path, HEADER, [summarise(ROWS, "published")])
    rows = [row(n, n % 3 > 0, f"A category with a long name {n % 20}") for n in range(200)]
    many = chart(tmp_path, HEADER, [summarise(rows, "published"), summarise(rows, "strict")])
    assert few.width == many.width >= 800
    assert many.height > 3 * few.height
    colours = {colour for _, colour in many.convert("RGB").getcolors(1 << 20)}
    assert {(0x2B, 0x6C, 0xA3), (0xE0, 0x8A, 0x1E)} <= colours  # a bar of each metric


def test_a_chart_without_a_value_says_why_and_stays_small(tmp_path):
    unread = Verdict(raw="?", error="unreadable reply: no score")
    rows = [row(n, None, f"type {n}", judge=unread) for n in range(9)]
    metrics = judged(rows, rubric("qa", "own"), "published")
    assert [metric.counts.judge_failed for metric in metrics] == [9, 9]
    assert chart(tmp_path, HEADER, metrics).height < 250


def test_colours_of_aspects_tell_the_protocol(tmp_path):
    verdict = Verdict(None, 4.0, "4")
    rows = [row(n, None, judge=verdict) for n in range(3)]
    names = ("correctness", "detail", "context", "temporal", "consistency")
    text = rubric("videochatgpt_detail", "own")
    kinds = [(name, kind) for name in names for kind in ("published", "strict")]
    metrics = [found for name, kind in kinds for found in judged(rows, text, kind, name)]
    image = chart(tmp_path, replace(HEADER, benchmark="videochatgpt", model="m"), metrics).convert("RGB")
    wide = {colour for count, colour in image.getcolors(1 << 20) if count > 5000 and max(colour) - min(colour) > 40}
    assert wide == {(0x2B, 0x6C, 0xA3), (0xE0, 0x8A, 0x1E)}


def test_options_that_change_the_questions_stand_in_the_headings():
    header = replace(HEADER, settings={"subtitles": "seen", "prompt": None})
    assert build_markdown(report(header, ROWS)).startswith("# mvbench, subtitles seen · DAMO-NLP-SG/VideoLLaMA2-7B\n")


def test_chart_takes_names_as_they_are(tmp_path):
    rows = [row(0, True, r"costs $\frac"), row(1, True, "$5 and $6"), row(2, False, "a_b^c {x}")]
    long = replace(HEADER, model="/a$b/" + "folder/" * 40 + "model")
    assert chart(tmp_path, long, [summarise(rows, "published")]).width >= 800


def test_missing_matplotlib_says_what_to_install_and_keeps_the_numbers(tmp_path):
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from videollama2.eval.report.document import Header, build_report\n"
        "from videollama2.eval.report.tables import write_report\n"
        "from videollama2.errors import MissingDependencyError\n"
        f"try: write_report({str(tmp_path)!r}, build_report({HEADER!r}, [], []))\n"
        "except MissingDependencyError as error: print(error)\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'videollama2[eval]'" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.json", "results.md"]
