"""Benchmarks beyond the paper's, on tiny sets in their official formats: prompts, readings, and scores by hand."""

import json

import pytest

from tests.eval.helpers.judge_server import JudgeServer
from tests.eval.helpers.tiny_sets import (
    MODEL,
    SETS,
    charades,
    longvideobench,
    lvbench,
    mlvu,
    mmvu,
    nextqa,
    star,
    tempcompass,
    tomato,
    videommmu,
)
from videollama2.errors import DataError
from videollama2.eval.__main__ import main
from videollama2.eval.benchmarks import benchmark
from videollama2.eval.benchmarks.charades_sta import overlap, published_span, strict_span
from videollama2.eval.benchmarks.videommmu import published_choice, published_equal, published_values
from videollama2.eval.judging.aspects import Judging
from videollama2.eval.judging.judge import OpenAIJudge
from videollama2.eval.samples import StoredAnswer
from videollama2.eval.scoring import judged_metrics, make_sample, read_metrics

pytestmark = pytest.mark.usefixtures("without_charts")


def scored(name, folder, outputs):
    """Metrics by name and protocol, of these outputs in the order of the questions."""
    found = benchmark(name)
    items = found.load(folder)
    answers = [StoredAnswer(item.id, output, None) for item, output in zip(items, outputs, strict=True)]
    samples = [make_sample(found, item, answer, "published") for item, answer in zip(items, answers, strict=True)]
    return {(metric.name, metric.protocol): metric for metric in read_metrics(found, samples)}


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_it_runs_from_a_download_to_a_report(name, tmp_path, capsys):
    SETS[name](tmp_path / "hub")
    assert main(["prepare", name, "--from", str(tmp_path / "hub"), "--to", str(tmp_path / "data")]) == 0
    assert main(["run", name, "--data", str(tmp_path / "data"), "--output", str(tmp_path / "out"), *MODEL]) == 0
    assert main(["score", str(tmp_path / "out"), "--protocol", "strict"]) == 0
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    assert report["metrics"][0]["counts"]["missing_media"] == 0
    assert report["metrics"][0]["counts"]["answered"] == len(benchmark(name).load(tmp_path / "data"))


def test_mlvu_by_hand(tmp_path):
    mlvu(tmp_path)
    first = benchmark("mlvu").load(tmp_path)[0]
    assert first.instruction == (
        "Carefully watch this video and pay attention to every detail. Based on your observations, select the best "
        "option that accurately addresses the question.\nQuestion: What?\nOptions:\n(A) a\n(B) b\n(C) c\n(D) d\n"
        "Only give the best option.\nBest option: ("
    )
    # Right answers: A A B C D A B C.
    outputs = ["A) a", "B", "The best answer is B", "(C) c", "none", "A", "B)", "D"]
    metric = scored("mlvu", tmp_path, outputs)["accuracy", "published"]
    by_task = [50, 100, 100, 0, 100, 100, 0]
    assert [cell.value for cell in metric.categories.values()] == by_task
    assert metric.macro == pytest.approx(sum(by_task) / 7)  # M-Avg
    assert metric.overall.value == pytest.approx(100 * 5 / 8)
    assert metric.counts.unparsed == 1


def test_nextqa_by_hand(tmp_path):
    nextqa(tmp_path)
    items = benchmark("nextqa").load(tmp_path)
    assert items[0].instruction == (
        "how 0\nA. run\nB. sit\nC. eat\nD. nap\nE. 1\nAnswer with the option's letter from the given choices directly."
    )
    metric = scored("nextqa", tmp_path, ["A", "B. sit", "A", "The answer is D."])["accuracy", "published"]
    assert metric.overall.value == 75
    assert {name: cell.value for name, cell in metric.categories.items()} == {
        "causal": 100,
        "temporal": 100,
        "descriptive": 0,
    }
    assert set(metric.breakdowns["type"]) == {"CW", "TN", "DL", "CH"}


def test_tempcompass_by_hand(tmp_path):
    tempcompass(tmp_path)
    items = benchmark("tempcompass").load(tmp_path)
    assert [item.instruction.rpartition("\n")[2] for item in items] == [
        "Please directly give the best option:",
        "Please directly give the best option:",
        "Please answer yes or no:",
        "Please directly give the best option:",
        "Please directly give the best option:",
    ]
    # Right answers: B, B, no, Caption A, Caption B. The rules do not read the second; the strict reading does.
    metrics = scored("tempcompass", tmp_path, ["B. it sits", "I think B", "No, it does not.", "It runs.", "Caption A"])
    published, strict = metrics["accuracy", "published"], metrics["accuracy", "strict"]
    assert (published.overall.value, strict.overall.value) == (60, 80)
    assert published.counts.unparsed == 1
    assert {name: cell.value for name, cell in published.categories.items()} == {
        "multi-choice": 50,
        "yes_no": 100,
        "caption_matching": 50,
    }


def test_tempcompass_captions_by_hand(tmp_path):
    tempcompass(tmp_path)
    told = "Information A: {'subject': 'man', 'action': 'running'}\nGenerated Caption:"
    captions = {"77": {"action": [{"question": told, "answer": "B. it sits"}] * 2, "speed": [{"question": told}]}}
    (tmp_path / "captioning.json").write_text(json.dumps(captions))
    found = benchmark("tempcompass_captioning")
    items = found.load(tmp_path)
    assert [(item.instruction, item.category, item.answer) for item in items] == [
        (told, aspect, "B. it sits") for aspect in ("action", "action", "speed")
    ]
    answers = [StoredAnswer(item.id, output, None) for item, output in zip(items, ("sits", "runs", "odd"), strict=True)]
    samples = [make_sample(found, item, answer, "published") for item, answer in zip(items, answers, strict=True)]
    server = JudgeServer()
    server.script = {
        "Video Description:sits\nMulti-Choice Question:\nWhat happens?\nA. it runs\nB. it sits\n": [
            "Reasoning: It sits.\nAnswer: B. it sits"
        ],
        "Video Description:runs\n": ["Reasoning: B. is said.\nAnswer: A. it runs"],
        "Video Description:odd\n": ["Answer: None of the choices are correct"],
    }
    try:
        judged, metrics = judged_metrics(found, samples, Judging(OpenAIJudge("m", base_url=server.url)), progress=False)
    finally:
        server.close()
    assert [sample.judge.pred for sample in judged] == ["yes", "no", "no"]
    assert [(metric.name, metric.protocol) for metric in metrics] == [("accuracy", "published"), ("accuracy", "strict")]
    assert metrics[0].overall.value == pytest.approx(100 / 3)
    assert {name: cell.value for name, cell in metrics[0].categories.items()} == {"action": 50, "speed": 0}
    (tmp_path / "multi-choice.json").write_text(json.dumps({"77": {"action": [{"question": "?", "answer": "A. x"}]}}))
    with pytest.raises(DataError, match="multi-choice.json has no question about speed of video '77'"):
        found.load(tmp_path)


# What the rules of lmms-eval's task give for these answers, computed with its own code.
@pytest.mark.parametrize(
    ("output", "choice"),
    [
        ("B", 1),
        ("B. a cube", 1),
        ("The answer is (C)", 2),
        ("D: because", 3),
        ("A or B.", 1),
        ("A. no, C. yes", 2),
        ("I think it is surely the Large Cone of them", 2),
        ("unknown", None),
        ("it is (A) not (B)", 1),
        ("IDEA B ", 1),
    ],
)
def test_video_mmmu_choices_are_read_as_published(output, choice):
    assert published_choice(output, ["a cube", "a ball", "the large cone", "nothing"]).value == choice


@pytest.mark.parametrize(
    ("output", "answer", "right"),
    [
        ("The mass is 12.970 g.", "12.97", True),
        ("so the result is 12.98", "12.97", False),
        ("x = 3 + 1 = 4", "4", True),
        ("There are 4 or 5", "4", True),
        ("1,234.5", "1234.5", True),
        ("It has four.", "4", False),
        ("the pressure is 2e3 Pa", "2000", True),
        ("ketose\nor aldose", "aldose", True),
        ("the letter is x", "x", True),
        (":", "4", False),
    ],
)
def test_video_mmmu_open_answers_are_read_as_published(output, answer, right):
    assert published_equal(published_values(output), answer) == right


def test_video_mmmu_by_hand(tmp_path):
    videommmu(tmp_path)
    items = benchmark("videommmu").load(tmp_path)
    listed = "A. a cube\nB. a ball\nC. the large cone\nD. nothing"
    learnt = "You should watch and learn the video content. Then apply what you learned to answer the following "
    placed = " question. The image for this question is at the end of the video.\n<image 1> "
    assert [item.instruction for item in items[::2]] == [
        f"What is shown?\n{listed}\nPlease ignore the Quiz question in last frame of the video.",
        f"What is shown?\n{listed}\nPlease ignore the Quiz question in last frame of the video.",
        f"{learnt}multi-choice{placed}Which?\n{listed}",
    ]
    assert items[5].instruction == f"{learnt}open-ended{placed}How many?"
    # Right answers: C C C C B 12.97. The published reading finds the C of "C." also where D is meant, and a 12.97 among
    # several numbers.
    outputs = ["C", "D is better than C.", "B", "(C)", "", "12.97 or 13"]
    metrics = scored("videommmu", tmp_path, outputs)
    published, strict = metrics["accuracy", "published"], metrics["accuracy", "strict"]
    assert {name: cell.value for name, cell in published.categories.items()} == {
        "Perception": 100,
        "Comprehension": 50,
        "Adaptation": 50,
    }
    assert published.macro == published.overall.value == pytest.approx(100 * 4 / 6)
    assert {name: cell.value for name, cell in published.breakdowns["discipline"].items()} == {
        "Science": pytest.approx(100 / 3),
        "Art": 100,
    }
    assert strict.overall.value == pytest.approx(100 * 2 / 6) and strict.counts.unparsed == 3


def test_star_by_hand(tmp_path):
    star(tmp_path)
    first = benchmark("star").load(tmp_path)[0]
    assert (first.start, first.end, first.group) == (0.0, 2.5, "6H78U")
    assert first.instruction == (
        "Question: What was opened?\nOptions:\n(A) The bag.\n(B) The door.\n(C) The box.\n"
        "Answer with the option's letter from the given choices directly and only give the best option."
    )
    metric = scored("star", tmp_path, ["(B)", "A", "the door.", "C"])["accuracy", "published"]
    values = {name: cell.value for name, cell in metric.categories.items()}
    assert values == {"Interaction": 50, "Sequence": 100, "Feasibility": 0}
    assert metric.macro == pytest.approx(50)


def test_tomato_by_hand(tmp_path):
    tomato(tmp_path)
    text = benchmark("tomato").load(tmp_path)[0].instruction
    assert text.startswith(
        "You will be provided with 16 separate frames uniformly sampled from a video, the frames are"
    )
    assert (
        "\n\n<question> \nWhich way? \n</question>\n\n<options> \n{'A': 'left to right', 'B': 'right to left'} \n"
        in text
    )
    assert text.endswith("\n\nDO NOT GENERATE ANSWER SUCH AS 'NOT POSSIBLE TO DETERMINE.' \n")
    # Right answers: A B A B. lmms-eval finds the B of "Both" and, where nothing is found, A.
    outputs = ["it moves from left to right i think", "Both", "A or (B)", "no idea"]
    metrics = scored("tomato", tmp_path, outputs)
    published = metrics["accuracy", "published"]
    assert published.overall.value == 50 and published.counts.guessed == 1
    assert {name: cell.value for name, cell in published.categories.items()} == {
        "direction": 100,
        "count": 0,
        "rotation": 0,
    }
    assert set(published.breakdowns["demonstration"]) == {"human"}
    assert metrics["accuracy", "strict"].overall.value == 25


def test_mmvu_by_hand(tmp_path):
    mmvu(tmp_path)
    items = benchmark("mmvu").load(tmp_path)
    assert [item.category for item in items] == ["Engineering", *["Humanities and social science"] * 2]
    assert items[0].instruction == (
        "\nQuestion:Which?\nA: Bubble Sort\nB: Merge Sort\nC: Heap Sort\nD: Quick Sort\nE: Radix Sort\n"
        "Visual Information: processed video\nDo not generate any intermediate reasoning process. Answer directly with "
        "the option letter from the\ngiven choices.\n"
    )
    # lmms-eval's rule takes the second for B: the word "sort" and a b somewhere. The third is C for every reading.
    metrics = scored("mmvu", tmp_path, ["B", "bubble sort", "C"])
    assert metrics["accuracy", "published"].overall.value == pytest.approx(100 * 2 / 3)
    assert metrics["accuracy", "strict"].overall.value == pytest.approx(100 / 3)


def test_longvideobench_by_hand(tmp_path):
    longvideobench(tmp_path)
    assert benchmark("longvideobench").load(tmp_path)[0].instruction == (
        "What?\nA. a\nB. b\nC. c\nAnswer with the option's letter from the given choices directly.\n"
    )
    metric = scored("longvideobench", tmp_path, ["A. a", "Best answer: B", "none"])["accuracy", "published"]
    assert {name: cell.value for name, cell in metric.categories.items()} == {"up to 15 s": 100, "up to 60 s": 50}
    assert metric.counts.unparsed == 1


def test_lvbench_by_hand(tmp_path):
    lvbench(tmp_path)
    metrics = scored("lvbench", tmp_path, ["A", "(A) red"])
    values = {name: metric.overall.value for (name, protocol), metric in metrics.items() if protocol == "published"}
    assert {name: value for name, value in values.items() if value is not None} == {
        "accuracy": 50,
        "accuracy, reasoning": 50,
        "accuracy, summarization": 100,
    }


@pytest.mark.parametrize(
    ("output", "published", "strict"),
    [
        ("The event happens in the 24.3 - 30.4 seconds.", (24.3, 30.4), (24.3, 30.4)),
        ("From 5 to 9.", (5, 9), (5, 9)),
        ("9 - 5", (5, 9), None),
        ("It starts at 3 seconds\nand ends at 8 seconds", (3, 8), (3, 8)),
        ("It starts at 3 and ends at 8", None, (3, 8)),
        ("00:10 - 00:20", (0, 10), (10, 20)),
        ("<think>1 - 2</think>3 - 4", (1, 2), (3, 4)),
        ("I do not know.", None, None),
        ("1 - 2 or 3 - 4", (1, 2), None),
    ],
)
def test_spans_are_read(output, published, strict):
    assert published_span(output) == published
    assert strict_span(output) == strict


def test_charades_by_hand(tmp_path):
    charades(tmp_path)
    assert (
        benchmark("charades_sta")
        .load(tmp_path)[0]
        .instruction.endswith(
            "Now I will give you the textual sentence: person turn a light on. "
            "Please return its start time and end time."
        )
    )
    assert overlap((0, 10), (5, 15)) == pytest.approx(5 / 15)
    assert overlap((0, 1), (2, 3)) == overlap((1, 1), (1, 1)) == 0
    metrics = scored("charades_sta", tmp_path, ["24.3 - 30.4", "5 - 15"])
    values = {name: metric.overall.value for (name, protocol), metric in metrics.items() if protocol == "published"}
    assert values == {
        "mean IoU": pytest.approx(100 * (1 + 1 / 3) / 2),
        "R@1, IoU >= 0.3": 100,
        "R@1, IoU >= 0.5": 50,
        "R@1, IoU >= 0.7": 50,
    }
    (tmp_path / "charades_sta_test.txt").write_text("3MSZA 24.3##x\n")
    with pytest.raises(DataError, match=r"line 1: expected 'VIDEO start end##sentence'"):
        benchmark("charades_sta").load(tmp_path)
